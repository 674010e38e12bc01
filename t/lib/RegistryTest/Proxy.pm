package RegistryTest::Proxy;

# A TCP proxy in a process of its own, which can be told to spoil what passes through it.
# Each order holds for the connections that are there and for those to come, until heal.
#
#     my $proxy = RegistryTest->proxy($redis->address);
#     ... redis redis://127.0.0.1:PORT, PORT being $proxy->port ...
#     $proxy->blackhole;
#     $proxy->heal;

use strict;
use warnings;

use Errno qw(EAGAIN EINPROGRESS EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use JSON::PP ();
use RegistryTest::Client qw(socket_address start_connect);
use RegistryTest::Process qw(free_port fork_child stop_process alive time_scale);
use Socket;
use Time::HiRes qw(time);

# The process ends with its orders' pipe, which must not close before the test does.
my @ALL;

sub new {
    my ($class, $target, %opt) = @_;
    my $self = bless { %opt, target => $target, port => free_port() }, $class;
    # Bound here, so that a port that is taken fails the test and not its nginx.
    my $listener = _listen($self->{port});
    socketpair my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC or die "socketpair: $!\n";
    $self->{pid} = fork_child(sub { $self->_serve($listener, $its) }, keep => [ $listener, $its ]);
    close $its;
    $self->{control} = $mine;
    push @ALL, $self;
    return $self;
}

sub port    { return $_[0]{port} }
sub pid     { return $_[0]{pid} }
sub address { return "127.0.0.1:$_[0]{port}" }

# All passes again, on new connections: those that there are are reset, unless keep is true. Then
# what a black hole has swallowed arrives after all, as on a network that was away for a moment.
sub heal { my ($self, %opt) = @_; return $self->_order(heal => $opt{keep} ? 1 : 0) }

# Whatever passes arrives so many seconds later, in both directions.
sub delay { my ($self, $seconds) = @_; return $self->_order(delay => $seconds) }

# Resets all connections that there are, once.
sub drop { return $_[0]->_order('drop') }

# Takes connections, and passes nothing on.
sub blackhole { return $_[0]->_order('blackhole') }

# Resets all connections and lets nobody connect.
sub refuse { return $_[0]->_order('refuse') }

# Each connection is reset when so many bytes of answers have passed, now and on those to come.
sub truncate { my ($self, $bytes) = @_; return $self->_order(truncate => $bytes) }

# What passes arrives in pieces of so many bytes, one a turn.
sub pieces { my ($self, $bytes) = @_; return $self->_order(pieces => $bytes) }

# Where somebody subscribes to something nothing more arrives: messages are lost and no one knows.
sub deaf { return $_[0]->_order('deaf') }

# Another server from now on; the connections to the old one are reset.
sub target { my ($self, $address) = @_; return $self->_order(target => $address) }

# connections (taken since the start), open, up and down (bytes that were passed on).
sub stats { return $_[0]->_order('stats') }

sub stop { my ($self) = @_; return stop_process($self->{pid}, TERM => 5) }

# An order is carried out when its answer is here.
sub _order {
    my ($self, @words) = @_;
    syswrite $self->{control}, "@words\n" or die "the proxy is gone: $!\n";
    my $bits = '';
    vec($bits, fileno $self->{control}, 1) = 1;
    select($bits, undef, undef, 10 * time_scale()) > 0 or die "the proxy does not answer\n";
    my $answer = readline $self->{control};
    die "the proxy is gone\n" unless defined $answer;
    return JSON::PP->new->decode($answer);
}

sub _listen {
    my ($port) = @_;
    my ($family, $packed) = socket_address("127.0.0.1:$port");
    socket my $listener, $family, SOCK_STREAM, 0 or die "socket: $!\n";
    setsockopt $listener, SOL_SOCKET, SO_REUSEADDR, 1;
    bind $listener, $packed or die "proxy: bind to port $port: $!\n";
    listen $listener, 128 or die "listen: $!\n";
    _non_blocking($listener);
    return $listener;
}

sub _non_blocking {
    my ($socket) = @_;
    fcntl $socket, F_SETFL, fcntl($socket, F_GETFL, 0) | O_NONBLOCK or die "fcntl: $!\n";
    return;
}

# From here on: inside the proxy's process.

# A pair is one connection through the proxy: a side for the client (0) and one for the server (1),
# and what is on its way to each ([when, bytes], oldest first).
sub _serve {
    my ($self, $listener, $control) = @_;
    $SIG{TERM} = sub { POSIX::_exit(0) };
    $SIG{PIPE} = 'IGNORE';
    $control->autoflush(1);
    _non_blocking($control);
    %$self = (
        %$self, listener => $listener, control => $control, mode => {}, pairs => {}, orders => '',
        stats => { connections => 0, up => 0, down => 0 },
    );
    $self->_turn while 1;
}

sub _turn {
    my ($self) = @_;
    my ($in, $out, $wait) = ('', '', undef);
    vec($in, fileno $self->{control}, 1) = 1;
    vec($in, fileno $self->{listener}, 1) = 1 if $self->{listener};
    my $now = time;
    for my $pair ($self->{mode}{blackhole} ? () : values %{ $self->{pairs} }) {
        for my $side (0, 1) {
            my $socket = $pair->{sockets}[$side];
            vec($in, fileno $socket, 1) = 1 unless $pair->{ended}[$side];
            my $next = $pair->{queue}[$side][0] or next;
            my $left = $next->[0] - $now;
            if ($left <= 0) { vec($out, fileno $socket, 1) = 1 }
            elsif (!defined $wait || $left < $wait) { $wait = $left }
        }
    }
    return unless select($in, $out, undef, $wait) > 0;
    for my $pair (values %{ $self->{pairs} }) {
        for my $side (0, 1) {
            next if $pair->{closed};
            my $fd = fileno $pair->{sockets}[$side];
            $self->_write($pair, $side) if vec $out, $fd, 1;
            $self->_read($pair, $side) if !$pair->{closed} && vec $in, $fd, 1;
        }
    }
    $self->_accept if $self->{listener} && vec $in, fileno $self->{listener}, 1;
    $self->_orders if vec $in, fileno $self->{control}, 1;
    return;
}

sub _accept {
    my ($self) = @_;
    while (accept my $client, $self->{listener}) {
        $self->{stats}{connections}++;
        my $server = eval { start_connect($self->{target}) } or next;
        _non_blocking($client);
        setsockopt $client, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1;
        my $pair = { sockets => [ $client, $server ], queue => [ [], [] ], ended => [ 0, 0 ], down => 0 };
        $self->{pairs}{$pair} = $pair;
    }
    return;
}

sub _close {
    my ($self, $pair, $reset) = @_;
    return if $pair->{closed}++;
    delete $self->{pairs}{$pair};
    for my $socket (@{ $pair->{sockets} }) {
        setsockopt $socket, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $reset;
        close $socket;
    }
    return;
}

# What one side says is put into the queue of the other.
sub _read {
    my ($self, $pair, $side) = @_;
    my $n = sysread $pair->{sockets}[$side], my $bytes, 65536;
    return if !defined $n && ($! == EAGAIN || $! == EINTR || $! == EINPROGRESS);
    return $self->_close($pair, 1) unless defined $n;
    my ($mode, $queue) = ($self->{mode}, $pair->{queue}[ !$side ]);
    if ($n == 0) {
        $pair->{ended}[$side] = 1;
        return $self->_close($pair) if $pair->{ended}[ !$side ] || !@$queue;
        push @$queue, [ $queue->[-1][0], undef ];
        return;
    }
    $pair->{subscribes} = 1 if $side == 0 && $bytes =~ /SUBSCRIBE\r\n/i;
    return if $side == 1 && $mode->{deaf} && $pair->{subscribes};
    if ($side == 1 && defined $mode->{truncate}) {
        my $left = $mode->{truncate} - $pair->{down};
        if ($n >= $left) {
            syswrite $pair->{sockets}[0], substr $bytes, 0, $left if $left > 0;
            return $self->_close($pair, 1);
        }
    }
    $pair->{down} += $n if $side == 1;
    my $when = $mode->{delay} ? time + $mode->{delay} : 0;
    if ($mode->{pieces}) { push @$queue, map { [ $when, $_ ] } unpack "(a$mode->{pieces})*", $bytes }
    else                 { push @$queue, [ $when, $bytes ] }
    # Nearly always there is room at once.
    return $self->_write($pair, !$side) unless $when || $mode->{pieces} || @$queue > 1;
    return;
}

sub _write {
    my ($self, $pair, $side) = @_;
    my $queue = $pair->{queue}[$side];
    my $now = time;
    while (@$queue && $queue->[0][0] <= $now) {
        my $bytes = $queue->[0][1];
        return $self->_close($pair) unless defined $bytes;
        my $n = syswrite $pair->{sockets}[$side], $bytes;
        if (!defined $n) {
            return if $! == EAGAIN || $! == EINTR || $! == EINPROGRESS;
            return $self->_close($pair, 1);
        }
        $self->{stats}{ $side ? 'up' : 'down' } += $n;
        if ($n < length $bytes) { substr $queue->[0][1], 0, $n, ''; return }
        shift @$queue;
        return if $self->{mode}{pieces};
    }
    return;
}

sub _orders {
    my ($self) = @_;
    my $n = sysread $self->{control}, my $bytes, 4096;
    # Whoever gave the orders is gone.
    POSIX::_exit(0) if defined $n && $n == 0;
    return unless $n;
    $self->{orders} .= $bytes;
    while ($self->{orders} =~ s/^(.*)\n//) {
        my ($verb, $value) = split ' ', $1;
        my $answer = $self->_obey($verb, $value);
        syswrite $self->{control}, JSON::PP->new->canonical->encode($answer) . "\n";
    }
    return;
}

sub _obey {
    my ($self, $verb, $value) = @_;
    return { %{ $self->{stats} }, open => scalar keys %{ $self->{pairs} } } if $verb eq 'stats';
    my $reset = $verb =~ /^(?:drop|refuse|target)$/;
    if ($verb eq 'heal') {
        $self->{listener} ||= _listen($self->{port});
        $reset = !$value && %{ $self->{mode} };
        $self->{mode} = {};
    }
    elsif ($verb eq 'target') { $self->{target} = $value }
    elsif ($verb eq 'refuse') { close delete $self->{listener} if $self->{listener} }
    elsif ($verb ne 'drop')   { $self->{mode}{$verb} = defined $value ? $value : 1 }
    if ($reset) { $self->_close($_, 1) for values %{ $self->{pairs} } }
    return {};
}

1;
