package RegistryTest::BackendProbed;

# Many servers in one process, made to be probed: each notes who connects and when, and does to a
# connection what its script says, however bad the manners.
#
#     my $probed = RegistryTest->probed(count => 20);             # or unix => 1
#     $probed->behave('slow', 3, 4);                              # servers 3 and 4
#     $probed->behave([ 'read', [ send => "HTTP/9.9 what\n" ] ]); # all of them
#
# A script is a list of steps; after the last one the connection stays open until the client
# closes it.
#
#     'read'                   until the head of a request is here
#     [send => BYTES]          until the system has taken them
#     [stream => BYTES, MAX]   the same bytes again and again, MAX (a gigabyte) of them
#     [drip => BYTES, S]       one byte each S seconds, for ever
#     [wait => S]
#     'close', 'reset'

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use JSON::PP ();
use RegistryTest::Client qw(socket_address);
use RegistryTest::Process qw(free_port fork_child stop_process temp_dir time_scale);
use Socket;
use Time::HiRes qw(time);

sub _answer { my ($status, $body, @headers) = @_; return join "\r\n", "HTTP/1.1 $status", 'Connection: close', 'Content-Length: ' . length $body, @headers, '', $body }

# Scripts by name; "status 503" and "after 0.3" (seconds, then well) stand for scripts of their own.
our %SCRIPTS = (
    ok       => [ 'read', [ send => _answer('200 OK', 'ok') ], 'close' ],
    silent   => ['read'],
    # Before the request is here, or whether or not.
    slams    => ['close'],
    resets   => ['reset'],
    early    => [ [ send => _answer('200 OK', 'ok') ], 'close' ],
    # Reads and then goes.
    leaves   => [ 'read', 'close' ],
    breaks   => [ 'read', 'reset' ],
    garbage  => [ 'read', [ send => join '', map { chr(($_ * 167 + 13) % 256) } 1 .. 300 ], 'close' ],
    noise    => [ 'read', [ stream => join '', map { chr(($_ * 167 + 13) % 256) } 1 .. 4096 ] ],
    # One byte a second.
    slow     => [ 'read', [ drip => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1 ] ],
    dribbles => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" ], [ drip => 'o', 1 ] ],
    # Without end.
    endless  => [ 'read', [ send => "HTTP/1.1 200 OK\r\n\r\n" ], [ stream => 'x' x 65536 ] ],
    chunks   => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" ], [ stream => "8\r\nabcdefgh\r\n" x 4096 ] ],
    tiny     => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" ], [ stream => "1\r\na\r\n" x 8192 ] ],
    extended => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" ], [ stream => 'x' x 65536 ] ],
    headers  => [ 'read', [ send => "HTTP/1.1 200 OK\r\n" ], [ stream => "X-More: and more\r\n" x 1000 ] ],
    line     => [ 'read', [ send => "HTTP/1.1 200 OK\r\nX-Line: " ], [ stream => 'x' x 65536 ] ],
    blank    => [ 'read', [ stream => "\r\n" x 8192 ] ],
    interim  => [ 'read', [ stream => "HTTP/1.1 100 Continue\r\n\r\n" x 1000 ] ],
    # A head that stops.
    half     => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Le" ] ],
    # Bodies that are not what they are said to be.
    short    => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok" ], 'close' ],
    chunk    => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdefgh\r\n0\r\n\r\n" ], 'close' ],
    no_size  => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nok\r\n0\r\n\r\n" ], 'close' ],
    cut      => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc" ], 'close' ],
    huge     => [ 'read', [ send => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok" ], 'close' ],
    most     => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok" ], 'close' ],
    negative => [ 'read', [ send => "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok" ], 'close' ],
    nul      => [ 'read', [ send => "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok" ], 'close' ],
    redirect => [ 'read', [ send => _answer('301 Moved Permanently', '', 'Location: /') ], 'close' ],
    # What a regular expression may go back and forth over.
    tangle   => [ 'read', [ send => _answer('200 OK', 'a' x 262_143 . '!') ], 'close' ],
);

# count (1) servers on ports of 127.0.0.1, or, unix => 1, on sockets; how: their script.
sub new {
    my ($class, %opt) = @_;
    my $self = bless { count => 1, how => 'ok', %opt }, $class;
    my $dir = temp_dir() if $self->{unix};
    my @listeners;
    for my $i (0 .. $self->{count} - 1) {
        my $port = $self->{unix} ? 0 : free_port();
        push @{ $self->{addresses} }, $self->{unix} ? "unix:$dir/$i" : "127.0.0.1:$port";
        push @{ $self->{ports} }, $port;
        # Bound here, so that a port that is taken fails the test.
        my ($family, $packed) = socket_address($self->{addresses}[$i]);
        socket my $listener, $family, SOCK_STREAM, 0 or die "socket: $!\n";
        setsockopt $listener, SOL_SOCKET, SO_REUSEADDR, 1;
        bind $listener, $packed or die "bind to $self->{addresses}[$i]: $!\n";
        chmod 0777, "$dir/$i" if $dir;
        listen $listener, 128 or die "listen: $!\n";
        _non_blocking($listener);
        push @listeners, $listener;
    }
    socketpair my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC or die "socketpair: $!\n";
    my $how = _script($self->{how});
    $self->{pid} = fork_child(sub { $self->_serve(\@listeners, $its, $how) }, keep => [ @listeners, $its ]);
    close $its;
    $self->{control} = $mine;
    return $self;
}

sub pid { return $_[0]{pid} }
sub host { return '127.0.0.1' }
sub port { my ($self, $i) = @_; return $self->{ports}[ $i || 0 ] }
sub address { my ($self, $i) = @_; return $self->{addresses}[ $i || 0 ] }
sub addresses { return @{ $_[0]{addresses} } }

sub _script {
    my ($how) = @_;
    return $how if ref $how;
    return [ 'read', [ send => _answer("$1 Status", 'ok') ], 'close' ] if $how =~ /^status (\d+)$/;
    return [ 'read', [ wait => $1 ], [ send => _answer('200 OK', 'ok') ], 'close' ] if $how =~ /^after ([\d.]+)$/;
    return $SCRIPTS{$how} || die "no script $how\n";
}

# The script of these servers, or of all, for connections from now on.
sub behave { my ($self, $how, @which) = @_; $self->_order({ verb => 'behave', how => _script($how), which => \@which }); return $self }

# The connections so far, in order, each { who (the server's place), begun, ended (undef: still open), pid (of the
# client, by a unix socket), line (the first of the request), head }. from: without the first so many.
sub log { my ($self, $from) = @_; return @{ $self->_order({ verb => 'log', from => $from || 0 }) } }

# How many connections so far: of each server, and the most of one server's at once.
sub counts { return @{ $_[0]->_order({ verb => 'counts' })->{counts} } }
sub count { my ($self) = @_; my $sum = 0; $sum += $_ for $self->counts; return $sum }
sub most_at_once { return $_[0]->_order({ verb => 'counts' })->{most} }
# Bytes sent in all.
sub sent { return $_[0]->_order({ verb => 'counts' })->{sent} }

sub stop { my ($self) = @_; return stop_process($self->{pid}, TERM => 5) }

# An order is carried out when its answer is here.
sub _order {
    my ($self, $order) = @_;
    my $line = JSON::PP->new->ascii->encode($order) . "\n";
    while (length $line) {
        defined(my $n = syswrite $self->{control}, $line) or die "the probed servers are gone: $!\n";
        substr $line, 0, $n, '';
    }
    my $answer = readline $self->{control};
    die "the probed servers are gone\n" unless defined $answer;
    return JSON::PP->new->decode($answer);
}

# From here on: inside the process.

sub _non_blocking {
    my ($socket) = @_;
    fcntl $socket, F_SETFL, fcntl($socket, F_GETFL, 0) | O_NONBLOCK or die "fcntl: $!\n";
    return;
}

sub _serve {
    my ($self, $listeners, $control, $how) = @_;
    $SIG{TERM} = sub { POSIX::_exit(0) };
    $SIG{PIPE} = 'IGNORE';
    %$self = (
        %$self, control => $control, listeners => { map { fileno $listeners->[$_] => $_ } 0 .. $#$listeners },
        sockets => { map { fileno $_ => $_ } @$listeners }, connections => {}, in => '', out => '', timers => [],
        scripts => [ ($how) x @$listeners ], log => [], counts => [ (0) x @$listeners ], open => [ (0) x @$listeners ],
        most => 0, sent => 0, orders => '',
    );
    vec($self->{in}, $_, 1) = 1 for fileno $control, map { fileno $_ } @$listeners;
    $self->_turn while 1;
}

sub _turn {
    my ($self) = @_;
    my $timers = $self->{timers};
    my $wait = @$timers ? $timers->[0][0] - time : undef;
    $wait = 0 if defined $wait && $wait < 0;
    if (select(my $in = $self->{in}, my $out = $self->{out}, undef, $wait) > 0) {
        $self->_orders if vec $in, fileno $self->{control}, 1;
        for my $connection (values %{ $self->{connections} }) {
            $self->_read($connection) if vec $in, $connection->{fd}, 1;
            $self->_run($connection) if !$connection->{closed} && vec $out, $connection->{fd}, 1;
        }
        for my $fd (keys %{ $self->{listeners} }) { $self->_accept($fd) if vec $in, $fd, 1 }
    }
    my $now = time;
    while (@$timers && $timers->[0][0] <= $now) {
        my (undef, $connection) = @{ shift @$timers };
        next if $connection->{closed};
        delete $connection->{waits};
        $self->_run($connection);
    }
    return;
}

sub _accept {
    my ($self, $fd) = @_;
    my $who = $self->{listeners}{$fd};
    while (accept my $socket, $self->{sockets}{$fd}) {
        _non_blocking($socket);
        # Who has gone before this one came, and was not noticed yet.
        $self->_read($_) for grep { $_->{entry}{who} == $who } values %{ $self->{connections} };
        my $entry = { who => $who, begun => time, ended => undef };
        # struct ucred: pid, uid, gid
        $entry->{pid} = unpack 'i', getsockopt $socket, SOL_SOCKET, Socket::SO_PEERCRED() if $self->{unix};
        push @{ $self->{log} }, $entry;
        $self->{counts}[$who]++;
        my $open = ++$self->{open}[$who];
        $self->{most} = $open if $open > $self->{most};
        my $connection = { socket => $socket, fd => fileno $socket, entry => $entry, in => '', steps => [ @{ $self->{scripts}[$who] } ] };
        $self->{connections}{ fileno $socket } = $connection;
        vec($self->{in}, fileno $socket, 1) = 1;
        $self->_run($connection);
    }
    return;
}

sub _close {
    my ($self, $connection, $reset) = @_;
    return if $connection->{closed}++;
    delete $self->{connections}{ $connection->{fd} };
    vec($self->{$_}, $connection->{fd}, 1) = 0 for qw(in out);
    $connection->{entry}{ended} = time;
    $self->{open}[ $connection->{entry}{who} ]--;
    setsockopt $connection->{socket}, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $reset;
    close $connection->{socket};
    return;
}

sub _read {
    my ($self, $connection) = @_;
    # To the end, so that a client that has gone is not taken for one that is there.
    my $n = 1;
    while ($n && length $connection->{in} < 65536) {
        $n = sysread $connection->{socket}, $connection->{in}, 65536, length $connection->{in};
    }
    my $has_gone = defined $n ? !$n : $! != EAGAIN && $! != EINTR;
    # Nobody asks for that much: let it go.
    $connection->{in} = 'x' x 1024 if length $connection->{in} >= 65536;
    if (!defined $connection->{entry}{line} && $connection->{in} =~ /\A([^\r\n]*)\r\n(?:.*?\r\n)?\r\n/s) {
        @{ $connection->{entry} }{qw(line head)} = ($1, $&);
        $self->_run($connection) unless $has_gone;
    }
    return $self->_close($connection) if $has_gone;
    return;
}

# Goes on with the script as far as it gets now.
sub _run {
    my ($self, $connection) = @_;
    return if $connection->{waits};
    vec($self->{out}, $connection->{fd}, 1) = 0;
    my $steps = $connection->{steps};
    # How much one turn sends, so that one connection does not keep the others from theirs.
    my $budget = 1 << 20;
    while (@$steps) {
        my ($verb, $value, $more) = ref $steps->[0] ? @{ $steps->[0] } : $steps->[0];
        if ($verb eq 'read') {
            return unless defined $connection->{entry}{line};
            shift @$steps;
        }
        elsif ($verb eq 'close' || $verb eq 'reset') { return $self->_close($connection, $verb eq 'reset') }
        elsif ($verb eq 'wait') {
            shift @$steps;
            return $self->_after($value, $connection);
        }
        elsif ($verb eq 'drip') {
            my $at = $connection->{at}++ % length $value;
            return unless $self->_write($connection, substr $value, $at, 1);
            return $self->_after($more, $connection);
        }
        else {
            my $max = $verb eq 'send' ? length $value : $more || 1 << 30;
            while ($connection->{done} ||= 0, $connection->{done} < $max) {
                my $at = $connection->{done} % length $value;
                my $n = $self->_write($connection, substr $value, $at, $max - $connection->{done}) or return;
                $connection->{done} += $n;
                $budget -= $n;
                if ($budget <= 0) {
                    vec($self->{out}, $connection->{fd}, 1) = 1;
                    return;
                }
            }
            $connection->{done} = 0;
            shift @$steps;
        }
    }
    return;
}

# Bytes written; 0 when there is no room (writable will tell) or the client has gone.
sub _write {
    my ($self, $connection, $bytes) = @_;
    my $n = syswrite $connection->{socket}, $bytes;
    if (defined $n) { $self->{sent} += $n; return $n }
    if ($! == EAGAIN || $! == EINTR) { vec($self->{out}, $connection->{fd}, 1) = 1 }
    else                             { $self->_close($connection) }
    return 0;
}

sub _after {
    my ($self, $seconds, $connection) = @_;
    my $when = time + $seconds;
    my $timers = $self->{timers};
    my $i = @$timers;
    $i-- while $i > 0 && $timers->[ $i - 1 ][0] > $when;
    splice @$timers, $i, 0, [ $when, $connection ];
    $connection->{waits} = 1;
    return;
}

sub _orders {
    my ($self) = @_;
    my $n = sysread $self->{control}, my $bytes, 1 << 20;
    # Whoever gave the orders is gone.
    POSIX::_exit(0) if defined $n && $n == 0;
    return unless $n;
    $self->{orders} .= $bytes;
    while ($self->{orders} =~ s/^(.*)\n//) {
        my $answer = $self->_obey(JSON::PP->new->decode($1));
        my $text = JSON::PP->new->latin1->encode($answer) . "\n";
        while (length $text) {
            my $sent = syswrite $self->{control}, $text;
            POSIX::_exit(0) unless defined $sent;
            substr $text, 0, $sent, '';
        }
    }
    return;
}

sub _obey {
    my ($self, $order) = @_;
    if ($order->{verb} eq 'log') {
        my $log = $self->{log};
        return [ @$log[ $order->{from} .. $#$log ] ];
    }
    if ($order->{verb} eq 'behave') {
        $self->{scripts}[$_] = $order->{how} for @{ $order->{which} } ? @{ $order->{which} } : 0 .. $#{ $self->{scripts} };
        return {};
    }
    return { map { $_ => $self->{$_} } qw(counts most sent) };
}

1;
