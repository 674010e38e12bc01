package RegistryTest::Backend;

# A real HTTP/1.1 server in a process of its own, told by each request (its query
# string) or beforehand (set) how to behave. One loop serves all connections, so a
# delayed answer holds up no other. Whoever speaks FastCGI, SCGI or uwsgi to it is
# answered in kind (the query is that of REQUEST_URI).
#
#   status=503          the status (200)
#   delay=0.5           seconds before the answer
#   body=TEXT size=N    the body, or N bytes of it; type=... its Content-Type
#   header=Name:value   one more response header
#   echo=1              the request as JSON in the body
#   chunked=1           chunked transfer encoding
#   drip=1.5            spread the body over so many seconds
#   cut=N               close after the headers and N bytes of the body
#   close=1             close without a reply
#   reset=1             the same with a TCP reset
#   hang=1              never reply
#   keepalive=0         answer, then close the connection
#
# A request with "Upgrade:" is answered 101 and its bytes are sent back from then
# on. /__stats tells the counts as JSON.

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use JSON::PP ();
use RegistryTest::Cgi;
use RegistryTest::Client ();
use RegistryTest::Http;
use RegistryTest::Process qw(free_port fork_child stop_process alive wait_until temp_dir);
use Socket;
use Time::HiRes qw(time);

# name: for X-Backend. host, port: where to listen (127.0.0.1 and a free port;
# "::1" for IPv6), or path: a unix socket. close_idle => 'fin' or 'rst': close a kept
# connection right when the next request arrives on it. Any of the settings above
# holds for each request that does not say otherwise. start => 0: not yet.
my @OWN = qw(name host port path close_idle start backlog);

sub new {
    my ($class, %opt) = @_;
    my $self = bless { host => '127.0.0.1', backlog => 511 }, $class;
    for my $key (@OWN) {
        $self->{$key} = delete $opt{$key} if exists $opt{$key};
    }
    $self->{defaults} = \%opt;
    $self->{path} = temp_dir() . '/backend.sock' if ($self->{host} || '') eq 'unix' && !$self->{path};
    $self->{port} ||= free_port() unless $self->{path};
    $self->{name} = $self->address unless defined $self->{name};
    $self->start unless defined $self->{start} && !$self->{start};
    return $self;
}

sub name { return $_[0]{name} }
sub host { return $_[0]{host} }
sub port { return $_[0]{port} }
sub pid  { return $_[0]{pid} }

# As nginx writes it: 127.0.0.1:8080, [::1]:8080 or unix:/path.
sub address {
    my ($self) = @_;
    return "unix:$self->{path}" if $self->{path};
    return $self->{host} =~ /:/ ? "[$self->{host}]:$self->{port}" : "$self->{host}:$self->{port}";
}

sub url {
    my ($self, $path) = @_;
    my $between = $self->{path} ? ':' : '';
    return 'http://' . $self->address . $between . (defined $path ? $path : '/');
}

sub start {
    my ($self) = @_;
    die "backend $self->{name} runs already\n" if $self->running;
    # The parent listens, so that a port that is taken fails the test here, and the
    # backend can be used as soon as start returns.
    my ($family, $packed) = RegistryTest::Client::socket_address($self->address);
    unlink $self->{path} if $self->{path};
    socket my $listener, $family, SOCK_STREAM, 0 or die "socket: $!\n";
    setsockopt $listener, SOL_SOCKET, SO_REUSEADDR, 1 if $family != PF_UNIX;
    bind $listener, $packed or die "backend $self->{name}: bind to " . $self->address . ": $!\n";
    listen $listener, $self->{backlog} or die "listen: $!\n";
    chmod 0777, $self->{path} if $self->{path};
    _non_blocking($listener);

    $self->{pid} = fork_child(sub { $self->_serve($listener) }, keep => [$listener]);
    return $self;
}

sub running { return $_[0]{pid} && alive($_[0]{pid}) }

# Both end at once, with all connections; stop by SIGTERM, kill by SIGKILL. The
# address stays reserved and start brings the backend back, with new counts.
sub stop { return $_[0]->_end('TERM') }
sub kill { return $_[0]->_end('KILL') }

sub _end {
    my ($self, $signal) = @_;
    my $pid = delete $self->{pid} or return;
    stop_process($pid, $signal => 5);
    return 1;
}

# Paused, it accepts no connection and answers nothing, while the kernel still
# completes connects until the backlog is full.
sub pause {
    my ($self) = @_;
    CORE::kill('STOP', $self->{pid});
    return wait_until(sub {
        RegistryTest::Process::slurp("/proc/$self->{pid}/stat") =~ /.*\)\s+T/s;
    });
}
sub resume { return CORE::kill('CONT', $_[0]{pid}) }

# The counts: requests (begun, besides those for /__...), connections, open, active,
# max_active and max_open (the highest of requests and connections at once), aborted (the client
# closed before the answer), stale (closed by close_idle), status (answers by
# status), methods, last (the last request: method, uri, headers, body).
sub stats { return $_[0]->_control('/__stats')->{json} }

# Sets the counts, other than open and active, to 0.
sub reset_stats { return $_[0]->_control('/__reset_stats')->{json} }

# Behaviour from now on, until clear; times => N: only for the next N requests.
sub set {
    my ($self, %settings) = @_;
    return $self->_control('/__set?' . RegistryTest::Client::form(\%settings))->{json};
}
sub clear { return $_[0]->_control('/__clear')->{json} }

sub _control {
    my ($self, $path) = @_;
    my $response = RegistryTest::Client::http('GET', $self->url($path));
    die "backend $self->{name}: $path: $response->{error}\n" unless $response->{status};
    return $response;
}

# From here on: inside the backend's process.

sub _non_blocking {
    my ($socket) = @_;
    fcntl $socket, F_SETFL, fcntl($socket, F_GETFL, 0) | O_NONBLOCK or die "fcntl: $!\n";
}

sub _serve {
    my ($self, $listener) = @_;
    $SIG{TERM} = sub { POSIX::_exit(0) };
    $SIG{PIPE} = 'IGNORE';
    %$self = (
        %$self, listener => $listener, connections => {}, timers => [], read_bits => '',
        write_bits => '', stats => {}, set => {}, control => 0,
    );
    $self->_clear_stats;
    vec($self->{read_bits}, fileno $listener, 1) = 1;
    $self->_turn while 1;
}

sub _turn {
    my ($self) = @_;
    my $timers = $self->{timers};
    my $timeout = @$timers ? $timers->[0][0] - time : undef;
    $timeout = 0 if defined $timeout && $timeout < 0;
    my $ready = select my $in = $self->{read_bits}, my $out = $self->{write_bits}, undef, $timeout;
    if ($ready > 0) {
        $self->_accept if vec $in, fileno $self->{listener}, 1;
        for my $fd (keys %{ $self->{connections} }) {
            my $connection = $self->{connections}{$fd} or next;
            $self->_flush($connection) if vec $out, $fd, 1;
            $self->_read($connection) if vec($in, $fd, 1) && !$connection->{closed};
        }
    }
    my $now = time;
    while (@$timers && $timers->[0][0] <= $now) {
        my (undef, $connection, $code) = @{ shift @$timers };
        $code->() unless $connection->{closed};
    }
    return;
}

# Timers are kept in order; a new one is nearly always the latest.
sub _after {
    my ($self, $seconds, $connection, $code) = @_;
    my $when = time + $seconds;
    my $timers = $self->{timers};
    my $i = @$timers;
    $i-- while $i > 0 && $timers->[ $i - 1 ][0] > $when;
    splice @$timers, $i, 0, [ $when, $connection, $code ];
    return;
}

sub _accept {
    my ($self) = @_;
    my $stats = $self->{stats};
    while (accept my $socket, $self->{listener}) {
        _non_blocking($socket);
        setsockopt $socket, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1 unless $self->{path};
        my $fd = fileno $socket;
        $self->{connections}{$fd} = {
            socket => $socket, fd => $fd, out => '', served => 0,
        };
        vec($self->{read_bits}, $fd, 1) = 1;
        $stats->{connections}++;
        $stats->{open}++;
    }
    return;
}

sub _close {
    my ($self, $connection, $reset) = @_;
    return if $connection->{closed}++;
    my $fd = $connection->{fd};
    $self->_end_request($connection);
    vec($self->{read_bits}, $fd, 1) = 0;
    vec($self->{write_bits}, $fd, 1) = 0;
    delete $self->{connections}{$fd};
    $self->{stats}{open}--;
    $self->{control}-- if $connection->{control};
    setsockopt $connection->{socket}, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $reset;
    close $connection->{socket};
    return;
}

sub _read {
    my ($self, $connection) = @_;
    # close_idle: a FIN needs the request to be read first, since the kernel answers
    # a close with unread bytes by a reset.
    my $stale = $self->{close_idle} && $connection->{served} && !$connection->{active};
    if ($stale && $self->{close_idle} eq 'rst') {
        $self->{stats}{stale}++;
        return $self->_close($connection, 1);
    }
    my $n = sysread $connection->{socket}, my $bytes, 65536;
    if (!defined $n) {
        return if $! == EAGAIN || $! == EINTR;
        $n = 0;
    }
    if ($n == 0) {
        $self->{stats}{aborted}++ if $connection->{active} && !$connection->{upgraded};
        return $self->_close($connection);
    }
    if ($stale) {
        $self->{stats}{stale}++;
        return $self->_close($connection);
    }
    if ($connection->{upgraded}) {
        $connection->{out} .= $bytes;
        return $self->_flush($connection);
    }
    $connection->{parser} ||= _parser_for($bytes);
    $connection->{parser}->feed($bytes);
    return $self->_next($connection);
}

sub _parser_for {
    my ($bytes) = @_;
    my $protocol = RegistryTest::Cgi::protocol_of(substr $bytes, 0, 1);
    return $protocol ? RegistryTest::Cgi->new($protocol) : RegistryTest::Http->new(request => 1);
}

sub _next {
    my ($self, $connection) = @_;
    return if $connection->{active} || $connection->{closed};
    my $parser = $connection->{parser};
    if ($parser->error) { return $self->_close($connection) }
    return unless $parser->done;
    my $request = $parser->take;
    return $self->_control_request($connection, $request) if $request->{uri} =~ m{^/__};

    my $stats = $self->{stats};
    $connection->{active} = 1;
    $stats->{requests}++;
    $stats->{methods}{ $request->{method} }++;
    $stats->{last} = { map { $_ => $request->{$_} } qw(method uri headers body) };
    my $open = $stats->{open} - $self->{control};
    $stats->{max_open} = $open if $open > $stats->{max_open};
    $stats->{active}++;
    $stats->{max_active} = $stats->{active} if $stats->{active} > $stats->{max_active};

    my $how = $self->_settings_for($request);
    if ($how->{delay}) {
        return $self->_after($how->{delay}, $connection, sub { $self->_answer($connection, $request, $how) });
    }
    return $self->_answer($connection, $request, $how);
}

sub _end_request {
    my ($self, $connection) = @_;
    $self->{stats}{active}-- if delete $connection->{active};
    return;
}

sub _query {
    my ($uri) = @_;
    my ($query) = $uri =~ /\?(.*)/s or return;
    return map {
        my ($name, $value) = split /=/, $_, 2;
        $value = '' unless defined $value;
        s/\+/ /g, s/%([0-9A-Fa-f]{2})/chr hex $1/ge for $name, $value;
        ($name, $value);
    } grep { length } split /&/, $query;
}

sub _settings_for {
    my ($self, $request) = @_;
    my %set = %{ $self->{set} };
    if (defined(my $times = delete $set{times})) {
        $self->{set} = {} if --$self->{set}{times} <= 0;
    }
    return { %{ $self->{defaults} }, %set, _query($request->{uri}) };
}

sub _control_request {
    my ($self, $connection, $request) = @_;
    my ($verb) = $request->{uri} =~ m{^/__(\w+)};
    if    ($verb eq 'set')         { $self->{set} = { %{ $self->{set} }, _query($request->{uri}) } }
    elsif ($verb eq 'clear')       { $self->{set} = {} }
    elsif ($verb eq 'reset_stats') { $self->_clear_stats }
    # The connection that asks is none of the traffic's.
    if (!$connection->{control}++) {
        $self->{control}++;
        $self->{stats}{connections}--;
    }
    my %stats = (name => $self->{name}, %{ $self->{stats} });
    $stats{open} -= $self->{control};
    my $json = JSON::PP->new->canonical->utf8->encode(\%stats);
    return $self->_send($connection, $request, 200, {}, $json, 'application/json', 1);
}

sub _clear_stats {
    my ($self) = @_;
    my $old = $self->{stats};
    $self->{stats} = {
        map({ $_ => 0 } qw(requests connections aborted stale)),
        map({ my $now = $old->{$_} || 0; ($_ => $now, "max_$_" => $now) } qw(open active)),
        status => {}, methods => {},
    };
    return;
}

sub _answer {
    my ($self, $connection, $request, $how) = @_;
    return if $how->{hang};
    return $self->_close($connection, 1) if $how->{reset};
    return $self->_close($connection) if $how->{close};
    if (($request->{headers}{upgrade} || '') ne '') {
        $connection->{upgraded} = 1;
        $self->{stats}{status}{101}++;
        $connection->{out} .= "HTTP/1.1 101 Switching Protocols\r\nUpgrade: $request->{headers}{upgrade}\r\n"
            . "Connection: Upgrade\r\nX-Backend: $self->{name}\r\n\r\n" . $connection->{parser}->rest;
        return $self->_flush($connection);
    }
    my ($body, $type) = ("$self->{name}\n", $how->{type} || 'text/plain');
    if ($how->{echo}) {
        $type = 'application/json';
        $body = JSON::PP->new->canonical->latin1->encode(
            { map({ $_ => $request->{$_} } qw(method uri version headers body)), backend => $self->{name} });
    }
    elsif (defined $how->{body}) { $body = $how->{body} }
    elsif (defined $how->{size}) { $body = substr 'x' x 4096 x (1 + $how->{size} / 4096), 0, $how->{size} }
    return $self->_send($connection, $request, $how->{status} || 200, $how, $body, $type);
}

sub _send {
    my ($self, $connection, $request, $status, $how, $body, $type, $control) = @_;
    $self->{stats}{status}{$status}++ unless $control;
    my $parser = $connection->{parser};
    my $http = $parser->isa('RegistryTest::Http');
    my $bodiless = $status =~ /^(?:204|304)$/;
    my $keepalive = $request->{keepalive} && !(defined $how->{keepalive} && !$how->{keepalive});
    my $chunked = $how->{chunked} && $request->{version} eq '1.1';
    my $head = ($http ? "HTTP/1.1 $status Status" : "Status: $status Status")
        . "\r\nServer: backend\r\nX-Backend: $self->{name}\r\n";
    $head .= "Content-Type: $type\r\n" unless $bodiless;
    $head .= $bodiless ? '' : $chunked ? "Transfer-Encoding: chunked\r\n"
        : 'Content-Length: ' . length($body) . "\r\n";
    $head .= 'Connection: ' . ($keepalive ? 'keep-alive' : 'close') . "\r\n" if $http;
    $head .= "$1: $2\r\n" if ($how->{header} || '') =~ /^([^:]+):\s*(.*)/;
    $head .= "\r\n";
    $head = $parser->frame($head) unless $http;
    $connection->{close_after} = !$keepalive;

    my ($wrap, $last) = (sub { $_[0] }, '');
    if ($bodiless || $request->{method} eq 'HEAD') { $body = '' }
    elsif ($chunked) {
        $wrap = sub { length $_[0] ? sprintf "%x\r\n%s\r\n", length $_[0], $_[0] : '' };
        $last = "0\r\n\r\n";
    }
    if (!$http) {
        $wrap = sub { $parser->frame($_[0]) };
        $last = $parser->end;
    }

    if (defined $how->{cut}) {
        $connection->{out} .= $head . $wrap->(substr $body, 0, $how->{cut});
        $connection->{close_after} = 1;
    }
    elsif ($how->{drip} && length $body) {
        $connection->{out} .= $head;
        $connection->{more} = 1;
        $self->_drip($connection, $body, $how->{drip}, $wrap, $last);
    }
    else {
        $connection->{out} .= $head . $wrap->($body) . $last;
    }
    return $self->_flush($connection);
}

sub _drip {
    my ($self, $connection, $body, $seconds, $wrap, $last) = @_;
    my $pieces = length $body < 10 ? length $body : 10;
    my $size = int((length($body) + $pieces - 1) / $pieces);
    my $left = $body;
    my $step;
    $step = sub {
        $connection->{out} .= $wrap->(substr $left, 0, $size, '');
        if (length $left) { $self->_after($seconds / $pieces, $connection, $step) }
        else {
            $connection->{out} .= $last;
            delete $connection->{more};
            undef $step;
        }
        $self->_flush($connection);
    };
    return $self->_after($seconds / $pieces, $connection, $step);
}

sub _flush {
    my ($self, $connection) = @_;
    while (length $connection->{out}) {
        my $n = syswrite $connection->{socket}, $connection->{out};
        if (defined $n) { substr $connection->{out}, 0, $n, ''; next }
        next if $! == EINTR;
        if ($! == EAGAIN) {
            vec($self->{write_bits}, $connection->{fd}, 1) = 1;
            return;
        }
        $self->{stats}{aborted}++;
        return $self->_close($connection);
    }
    vec($self->{write_bits}, $connection->{fd}, 1) = 0;
    return if $connection->{more} || $connection->{upgraded};
    $connection->{served}++;
    $self->_end_request($connection);
    return $self->_close($connection) if $connection->{close_after};
    # Bytes of the next request may be here already.
    $connection->{parser}->feed('');
    return $self->_next($connection);
}

1;
