package Test::Nginx::Client;

# The requests of a block as bytes, their way to nginx and back, and the responses.

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use Exporter 'import';
use RegistryTest::Client qw(start_connect connect_error);
use RegistryTest::Http;
use Time::HiRes qw(sleep);

our @EXPORT_OK = qw(requests_of_block send_packets parse_response parse_headers parse_time);

# "10", "10s" or "10ms" in seconds.
sub parse_time {
    my ($text) = @_;
    return $text unless defined $text;
    return $1 / 1000 if $text =~ /^(.*\d)ms$/;
    return $1 if $text =~ /^(.*\d)s$/;
    return $text;
}

# The section more_headers as header lines, and whether it says chunked.
sub _more_headers {
    my ($text) = @_;
    my ($out, $chunked) = ('', 0);
    for my $line (grep { !/^\s*#/ } split /\n+/, $text) {
        my ($name, $value) = split /:\s*/, $line, 2;
        $value = '' unless defined $value;
        $chunked = 1 if lc $name eq 'transfer-encoding' && $value eq 'chunked';
        $out .= "$name: $value\r\n";
    }
    return ($out, $chunked);
}

# "METHOD [URL [VERSION]]", then the body. Host and Connection are added, and the
# Content-Length of a body, whose outer white space does not count.
#
# A request in several packets stays so: each cut is found again in what is sent, and
# the added headers go with the packet in which the request line ends.
sub _build {
    my ($server_name, $more_headers, $connection, @packets) = @_;
    my ($line, $body) = join('', @packets) =~ /^([^\n]*\n?)(.*)\z/s;
    my ($indent, $method, $url, $version) = $line =~ m{^(\s*)(\S+)(?: +(\S+)(?: +(\S+))?)? *\s*$}
        or die $line =~ /\S/ ? "bad request line: $line" : "the request is empty\n";
    my ($extra, $chunked) = _more_headers($more_headers);

    my ($body_indent, $length) = (0, '');
    if ($body ne '' && !$chunked && $extra !~ /^Content-Length:/mi) {
        $body_indent = length $1 if $body =~ s/^(\s+)//;
        $body =~ s/\s+\z//;
        $length = 'Content-Length: ' . length($body) . "\r\n";
    }
    my $head = join(' ', $method, defined $url ? $url : '/', $version || 'HTTP/1.1') . "\r\n";
    $head .= "Host: $server_name\r\n" if $extra !~ /^Host:/mi;
    $head .= "Connection: $connection\r\n" if $extra !~ /^Connection/mi;
    $head .= "$extra$length\r\n";
    my $out = $head . $body;

    my $line_length = length $line;
    $line_length-- if $line =~ /\n\z/;
    my ($position, $cut, @pieces) = (0, 0);
    for my $packet (@packets[ 0 .. $#packets - 1 ]) {
        $position += length $packet;
        my $end = $position < $line_length ? $position - length $indent
            : length($head) + $position - length($line) - $body_indent;
        $end = length $head if $end < length $head && $position >= $line_length;
        $end = length $out if $end > length $out;
        $end = $cut if $end < $cut;
        push @pieces, substr $out, $cut, $end - $cut;
        $cut = $end;
    }
    return (@pieces, substr $out, $cut);
}

# A list of requests, each a list of packets { value, delay_before }. Dies on a section
# that cannot be understood.
sub requests_of_block {
    my ($block, $server_name) = @_;
    if (defined(my $raw = $block->raw_request)) {
        my @packets = map { +{ value => $_ } } ref $raw ? @$raw : $raw;
        my $delay = $block->raw_request_middle_delay;
        $_->{delay_before} = $delay for @packets[ 1 .. $#packets ];
        return \@packets;
    }
    my $more = $block->more_headers;
    $more = '' unless defined $more;
    my $headers = sub {
        my ($i) = @_;
        return $more unless ref $more eq 'ARRAY';
        return $more->[$i] if defined $more->[$i];
        die "more_headers lacks data for request $i\n";
    };

    if (my $pipelined = $block->pipelined_requests) {
        die "pipelined_requests must be an array\n" unless ref $pipelined eq 'ARRAY';
        my $bytes = join '', map {
            my $connection = $_ == $#$pipelined ? 'close' : 'keep-alive';
            _build($server_name, $headers->($_), $connection, $pipelined->[$_]);
        } 0 .. $#$pipelined;
        return [ { value => $bytes } ];
    }

    my $request = $block->request;
    die "no request\n" unless defined $request;
    if (!ref $request) {
        # Comments may stand before the request.
        1 while $request =~ s/^\s*#[^\n]*\n\s*|^\s+//;
        return [ { value => join '', _build($server_name, $headers->(0), 'close', $request) } ];
    }
    die "request must be a string or an array\n" unless ref $request eq 'ARRAY';
    my @list;
    for my $i (0 .. $#$request) {
        my @packets = map { ref $_ ? {%$_} : { value => $_ } }
            ref $request->[$i] ? @{ $request->[$i] } : $request->[$i];
        my @built = _build($server_name, $headers->($i), 'close', map { $_->{value} } @packets);
        $packets[$_]{value} = $built[$_] for 0 .. $#packets;
        push @list, \@packets;
    }
    return @list;
}

# Sends the packets and reads until nginx closes. timeout: the longest wait for any one
# event; shutdown: what to shut down once everything is sent. Returns the bytes and how
# it ended: "closed", "timeout", or an error.
sub send_packets {
    my ($address, $packets, %opt) = @_;
    my $socket = eval { start_connect($address) } or return ('', "no connection: $@");
    my ($got, $connected) = ('', 0);
    my @left = map { +{%$_} } @$packets;
    my $fd = fileno $socket;
    my $bit = '';
    vec($bit, $fd, 1) = 1;

    while (1) {
        my ($in, $out) = ($bit, @left ? $bit : '');
        my $ready = select $in, $out, undef, $opt{timeout};
        next if $ready < 0;
        return ($got, 'timeout') if !$ready;
        if (@left && vec $out, $fd, 1) {
            if (!$connected++ and my $error = connect_error($socket)) {
                return ('', "no connection to $address: $error");
            }
            my $delay = delete $left[0]{delay_before};
            sleep $delay if $delay;
            my $n = syswrite $socket, $left[0]{value};
            if (defined $n) {
                substr $left[0]{value}, 0, $n, '';
                shift @left unless length $left[0]{value};
                shutdown $socket, $opt{shutdown} if !@left && defined $opt{shutdown};
            }
            # nginx may have answered, and closed, without reading everything.
            elsif ($! != EAGAIN && $! != EINTR) { @left = () }
        }
        next unless vec $in, $fd, 1;
        my $n = sysread $socket, my $bytes, 65536;
        if ($n) { $got .= $bytes; next }
        return ($got, 'closed') if defined $n;
        return ($got, "reading failed: $!") if $! != EAGAIN && $! != EINTR;
    }
}

# The first response in the bytes; left is what follows it.
sub parse_response {
    my ($bytes, $is_head) = @_;
    my $parser = RegistryTest::Http->new(head => $is_head);
    $parser->feed($bytes) or $parser->eof;
    my $message = $parser->partial || {};
    my $raw = defined $message->{raw_head} ? $message->{raw_head} : '';
    $raw =~ s/\r\n\z//;
    return {
        code        => defined $message->{status} ? $message->{status} : '',
        headers     => $message->{headers} || {},
        raw_headers => $raw,
        content     => $message->{body},
        left        => $parser->done ? $parser->rest : '',
        error       => scalar $parser->error,
        chunked     => scalar(($message->{headers}{'transfer-encoding'} || '') =~ /chunked/i),
    };
}

# The section response_headers: [name, value] in order, each name once; an undefined value
# for "! Name".
sub parse_headers {
    my ($text) = @_;
    my (@names, %value);
    for my $line (grep { /\S/ } split /\n/, $text) {
        $line =~ s/^\s+|\s+$//g;
        my $absent = $line =~ s/^!\s*//;
        my ($name, $value) = split /\s*:\s*/, $line, 2;
        push @names, $name unless exists $value{$name};
        $value{$name} = $absent ? undef : defined $value ? $value : '';
    }
    return map { [ $_, $value{$_} ] } @names;
}

1;
