package RegistryTest::Client;

# An HTTP/1.1 client over plain sockets: one object is one connection, kept alive
# from request to request for as long as the server agrees.

use strict;
use warnings;

use Exporter 'import';
use Errno qw(EAGAIN EINPROGRESS EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use JSON::PP ();
use RegistryTest::Http;
use RegistryTest::Process qw(time_scale);
use Socket;
use Time::HiRes qw(time);

our @EXPORT_OK = qw(
    start_connect connect_error parse_url socket_address format_request
    http raw curl uri_escape form
);

our $TIMEOUT = 10;    # seconds for a whole request

sub uri_escape {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    $text =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ge;
    return $text;
}

# A query string or form body, with the names in order.
sub form {
    my ($fields) = @_;
    return join '&', map { uri_escape($_) . '=' . uri_escape($fields->{$_}) } sort keys %$fields;
}

# "http://HOST:PORT/path" gives ("HOST:PORT", "/path"); "http://unix:/socket:/path"
# gives ("unix:/socket", "/path"), as in nginx's proxy_pass.
sub parse_url {
    my ($url) = @_;
    return ($1, length($2 || '') ? $2 : '/') if $url =~ m{^http://(unix:[^:]+)(?::(.*))?$};
    my ($address, $path) = $url =~ m{^http://(\[[^\]]+\](?::\d+)?|[^/?]+)(.*)$}
        or die "not a URL that this client can fetch: $url\n";
    $path = "/$path" unless $path =~ m{^/};
    return ($address, $path);
}

# (family, packed address) of "1.2.3.4:80", "[::1]:80" or "unix:/path".
sub socket_address {
    my ($address) = @_;
    return (PF_UNIX, pack_sockaddr_un($1)) if $address =~ /^unix:(.+)/;
    return (PF_INET6, Socket::pack_sockaddr_in6($2 || 0, Socket::inet_pton(PF_INET6, $1)))
        if $address =~ /^\[([^\]]+)\](?::(\d+))?$/;
    my ($host, $port) = $address =~ /^([^:]+)(?::(\d+))?$/ or die "bad address: $address\n";
    my $ip = inet_aton($host) or die "unknown host: $host\n";
    return (PF_INET, pack_sockaddr_in($port || 0, $ip));
}

# A non-blocking socket that is connecting; from: the local address to come from.
sub start_connect {
    my ($address, $from) = @_;
    my ($family, $packed) = socket_address($address);
    socket my $socket, $family, SOCK_STREAM, 0 or die "socket: $!\n";
    fcntl $socket, F_SETFL, fcntl($socket, F_GETFL, 0) | O_NONBLOCK or die "fcntl: $!\n";
    if ($family != PF_UNIX) {
        setsockopt $socket, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1;
        if (defined $from) {
            setsockopt $socket, SOL_SOCKET, SO_REUSEADDR, 1;
            bind $socket, (socket_address($from =~ /:.*:/ ? "[$from]" : $from))[1]
                or die "bind to $from: $!\n";
        }
    }
    connect $socket, $packed or $! == EINPROGRESS or die "connect to $address: $!\n";
    return $socket;
}

# Why connecting failed, once the socket is writable; empty when it did not.
sub connect_error {
    my ($socket) = @_;
    my $errno = unpack 'i', getsockopt $socket, SOL_SOCKET, SO_ERROR or return '';
    local $! = $errno;
    return "$!";
}

# The bytes of a request. headers: a hash (undef leaves a default out, an array
# repeats the header) or an array of [name, value] pairs in their order.
sub format_request {
    my ($method, $path, %opt) = @_;
    my $headers = $opt{headers} || {};
    my @pairs = ref $headers eq 'ARRAY' ? @$headers : map {
        my $name = $_;
        map { [ $name, $_ ] } ref $headers->{$name} ? @{ $headers->{$name} } : $headers->{$name};
    } sort keys %$headers;
    my %given = map { lc $_->[0] => 1 } @pairs;

    my $text = "$method $path HTTP/" . ($opt{version} || '1.1') . "\r\n";
    $text .= 'Host: ' . ($opt{host} || 'localhost') . "\r\n" unless $given{host};
    my $body = $opt{body};
    $text .= 'Content-Length: ' . length($body) . "\r\n"
        if defined $body && !$given{'content-length'} && !$given{'transfer-encoding'};
    $text .= "Content-Type: application/x-www-form-urlencoded\r\n"
        if defined $body && !$given{'content-type'};
    $text .= "Connection: close\r\n" if $opt{close} && !$given{connection};
    $text .= "$_->[0]: $_->[1]\r\n" for grep { defined $_->[1] } @pairs;
    return "$text\r\n" . (defined $body ? $body : '');
}

# address: "HOST:PORT" or a URL. Options for every request of this connection:
# timeout, headers, from (the local address).
sub new {
    my ($class, $address, %opt) = @_;
    ($address) = parse_url($address) if $address =~ m{^http://};
    return bless { %opt, address => $address }, $class;
}

sub connected { return defined $_[0]{socket} }
sub socket    { return $_[0]{socket} }

sub _deadline {
    my ($self, $opt) = @_;
    my $timeout = defined $opt->{timeout} ? $opt->{timeout} : $self->{timeout};
    return time + (defined $timeout ? $timeout : $TIMEOUT * time_scale());
}

sub _wait {
    my ($self, $for_write, $deadline) = @_;
    while (1) {
        my $left = $deadline - time;
        die "timeout\n" if $left <= 0;
        my $bits = '';
        vec($bits, fileno $self->{socket}, 1) = 1;
        my $ready = $for_write ? select undef, my $out = $bits, undef, $left
                               : select my $in = $bits, undef, undef, $left;
        return if $ready > 0;
    }
}

sub open {
    my ($self, %opt) = @_;
    return $self if $self->{socket};
    my $deadline = $self->_deadline(\%opt);
    $self->{socket} = start_connect($self->{address}, $self->{from});
    $self->_wait(1, $deadline);
    if (my $error = connect_error($self->{socket})) {
        $self->close;
        die "connect to $self->{address}: $error\n";
    }
    $self->{parser} = RegistryTest::Http->new;
    return $self;
}

sub close {
    my ($self) = @_;
    CORE::close delete $self->{socket} if $self->{socket};
    return;
}

# Closes with a TCP reset instead of a FIN.
sub reset {
    my ($self) = @_;
    setsockopt $self->{socket}, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0 if $self->{socket};
    return $self->close;
}

# Sends bytes as they are; connects first when need be.
sub send {
    my ($self, $bytes, %opt) = @_;
    $self->open(%opt);
    my $deadline = $self->_deadline(\%opt);
    my $sent = 0;
    while ($sent < length $bytes) {
        my $n = syswrite $self->{socket}, $bytes, length($bytes) - $sent, $sent;
        if    (defined $n)                      { $sent += $n }
        elsif ($! == EAGAIN || $! == EINTR)     { $self->_wait(1, $deadline) }
        # The server may have answered, and closed, without reading all of it.
        else                                    { $self->{write_error} = "$!"; last }
    }
    return $sent;
}

# Reads once: some bytes, or undef at the end.
sub read_some {
    my ($self, %opt) = @_;
    my $deadline = $self->_deadline(\%opt);
    while (1) {
        my $n = sysread $self->{socket}, my $bytes, 65536;
        return $n ? $bytes : undef if defined $n;
        die "read: $!\n" unless $! == EAGAIN || $! == EINTR;
        $self->_wait(0, $deadline);
    }
}

# Everything up to the close.
sub read_all {
    my ($self, %opt) = @_;
    my $all = '';
    while (defined(my $bytes = $self->read_some(%opt))) { $all .= $bytes }
    return $all;
}

# Whether the server has closed this connection (with nothing left to read).
sub closed_by_server {
    my ($self, %opt) = @_;
    return 1 unless $self->{socket};
    my $bytes = eval { $self->read_some(timeout => 0, %opt) };
    return 0 if $@ && $@ eq "timeout\n";
    return 1 if $@ || !defined $bytes;
    die "unexpected bytes from the server: $bytes\n";
}

# Reads one response. Returns { status, reason, headers, body, json, raw_head }; when
# there was none { status => 0, error => why }. undecoded => 1 leaves json out.
sub response {
    my ($self, %opt) = @_;
    my $parser = $self->{parser};
    $parser->{head} = ($opt{method} || '') eq 'HEAD';
    my $ok = eval {
        my $deadline = $self->_deadline(\%opt);
        until ($parser->feed('') || $parser->error) {
            my $bytes = $self->read_some(timeout => $deadline - time);
            if (defined $bytes) { $parser->feed($bytes) }
            else                { $parser->eof; last }
        }
        1;
    };
    (my $error = $ok ? $parser->error || '' : $@) =~ s/\n\z//;
    if ($error) {
        my $partial = $parser->partial;
        $self->close;
        return { status => 0, headers => {}, body => '', error => $error, partial => $partial };
    }
    my $message = $parser->take;
    $self->close unless $message->{keepalive};
    $message->{json} = eval { JSON::PP->new->utf8->decode($message->{body}) }
        if !$opt{undecoded} && ($message->{headers}{'content-type'} || '') =~ /json/i;
    return $message;
}

# One request and its response. Options: headers, body, timeout, version, close.
sub request {
    my ($self, $method, $path, %opt) = @_;
    $opt{headers} = { %{ $self->{headers} }, %{ $opt{headers} || {} } }
        if $self->{headers} && ref($opt{headers} || {}) eq 'HASH';
    my $start = time;
    my $response;
    my $sent = eval {
        $self->send(format_request($method, $path, host => $self->{address}, %opt), %opt);
        1;
    };
    if ($sent) {
        $response = $self->response(%opt, method => $method);
    }
    else {
        (my $error = $@) =~ s/\n\z//;
        $self->close;
        $response = { status => 0, headers => {}, body => '', error => $error };
    }
    $response->{time} = time - $start;
    return $response;
}

sub get  { my ($self, $path, %opt) = @_; return $self->request('GET', $path, %opt) }
sub post { my ($self, $path, %opt) = @_; return $self->request('POST', $path, %opt) }

# One request on a connection of its own.
sub http {
    my ($method, $url, %opt) = @_;
    my ($address, $path) = parse_url($url);
    my $client = __PACKAGE__->new($address, from => $opt{from});
    my $response = $client->request($method, $path, close => 1, %opt);
    $client->close;
    return $response;
}

# Bytes to an address as they are; returns all that comes back until the server
# closes, or until the timeout.
sub raw {
    my ($address, $bytes, %opt) = @_;
    my $client = __PACKAGE__->new($address, from => $opt{from});
    my $got = '';
    my $ok = eval {
        $client->send($bytes, %opt);
        shutdown $client->socket, 1 if $opt{half_close};
        while (defined(my $more = $client->read_some(%opt))) { $got .= $more }
        1;
    };
    $client->close;
    die $@ if !$ok && $@ ne "timeout\n" && !length $got;
    return $got;
}

# What only curl can do (TLS, HTTP/2): its arguments in, the same hash as from http()
# out, with curl's exit code and messages.
sub curl {
    my (@arguments) = @_;
    my $dir = RegistryTest::Process::temp_dir();
    my $pid = RegistryTest::Process::spawn(
        [ 'curl', '-sS', '-m', $TIMEOUT * time_scale(), '-D', "$dir/head", '-o', "$dir/body", @arguments ],
        stderr => "$dir/stderr");
    RegistryTest::Process::wait_until(
        sub { !RegistryTest::Process::alive($pid) }, ($TIMEOUT + 5) * time_scale());
    my $exit = RegistryTest::Process::exit_status($pid);
    RegistryTest::Process::stop_process($pid, KILL => 1);
    my ($head) = RegistryTest::Process::slurp("$dir/head") =~ /((?:(?!\r\n\r\n).)*\r\n\r\n)\z/s;
    my %response = (
        status  => 0, headers => {}, raw_head => $head,
        body    => RegistryTest::Process::slurp("$dir/body"),
        exit    => defined $exit ? $exit >> 8 : -1,
        error   => RegistryTest::Process::slurp("$dir/stderr"),
    );
    if (defined $head && $head =~ m{^HTTP/(\S+) (\d{3})}) {
        @response{qw(version status)} = ($1, $2);
        while ($head =~ /^([^:\r\n]+):\s*(.*?)\r$/mg) {
            my ($name, $value) = (lc $1, $2);
            my $known = $response{headers}{$name};
            $response{headers}{$name} = defined $known ? "$known, $value" : $value;
        }
    }
    $response{json} = eval { JSON::PP->new->utf8->decode($response{body}) }
        if ($response{headers}{'content-type'} || '') =~ /json/i;
    return \%response;
}

1;
