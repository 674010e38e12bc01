package RegistryTest::Http;

# An incremental parser for HTTP/1.x messages, requests and responses, used by the
# client, the load generator and the backend. Feed it bytes as they arrive:
#
#     my $parser = RegistryTest::Http->new(head => $method eq 'HEAD');
#     $parser->feed($bytes) until $parser->done;
#     my $message = $parser->take;    # what follows stays for the next message

use strict;
use warnings;

# request: parse requests, not responses. head: the response to a HEAD, which has
# no body whatever its headers say.
sub new {
    my ($class, %opt) = @_;
    my $self = bless { %opt, buffer => '' }, $class;
    $self->_reset;
    return $self;
}

sub _reset {
    my ($self) = @_;
    $self->{state} = 'head';
    $self->{message} = undef;
    $self->{error} = undef;
    return;
}

# Adds bytes; true once a message is complete.
sub feed {
    my ($self, $bytes) = @_;
    $self->{buffer} .= $bytes if defined $bytes;
    while ($self->{state} ne 'done' && !$self->{error}) {
        my $step = "_parse_$self->{state}";
        $self->$step or last;
    }
    return $self->done;
}

# The other side has closed: the end of a body that has no length.
sub eof {
    my ($self) = @_;
    if ($self->{state} eq 'until_close') { $self->{state} = 'done' }
    elsif ($self->{state} ne 'done') {
        $self->{error} ||= $self->{message}       ? "closed within the body ($self->{state})"
                         : length $self->{buffer} ? 'closed within the headers'
                         :                          'closed without a reply';
    }
    return $self->done;
}

sub done  { return $_[0]{state} eq 'done' }
sub error { return $_[0]{error} }

# Whether anything of a message is there yet.
sub started { return $_[0]{message} || length $_[0]{buffer} }

# What has been parsed so far, complete or not.
sub partial { return $_[0]{message} }

# The complete message; the parser goes on to the next one.
sub take {
    my ($self) = @_;
    my $message = $self->{message};
    $self->_reset;
    return $message;
}

# Bytes after the complete message.
sub rest { return $_[0]{buffer} }

# A message has: version, headers (names in lower case, repeated ones joined with
# ", "), raw_head, body; a request: method, uri; a response: status, reason.
sub _parse_head {
    my ($self) = @_;
    $self->{buffer} =~ s/^(?:\r\n)+// if $self->{request};
    my $end = index $self->{buffer}, "\r\n\r\n";
    if ($end < 0) {
        $self->{error} = 'headers too large' if length $self->{buffer} > 1_000_000;
        return 0;
    }
    my $head = substr $self->{buffer}, 0, $end + 4, '';
    my ($first, @lines) = split /\r\n/, $head;
    my %message = (raw_head => $head, body => '', headers => {});

    if ($self->{request}) {
        @message{qw(method uri version)} = $first =~ m{^(\S+) (\S+) HTTP/(\d\.\d)$};
        return !($self->{error} = "bad request line: $first") unless $message{version};
    }
    else {
        @message{qw(version status reason)} = $first =~ m{^HTTP/(\d\.\d) (\d{3})(?: (.*))?$};
        return !($self->{error} = "bad status line: $first") unless $message{status};
    }
    my $headers = $message{headers};
    for my $line (@lines) {
        my ($name, $value) = $line =~ /^([^:]+):\s*(.*?)\s*$/ or next;
        $name = lc $name;
        $headers->{$name} = exists $headers->{$name} ? "$headers->{$name}, $value" : $value;
    }
    $message{keepalive} = ($headers->{connection} || '') =~ /close/i ? 0
                        : $message{version} eq '1.1' ? 1
                        : ($headers->{connection} || '') =~ /keep-alive/i ? 1 : 0;
    # "100 Continue" and its like only announce the response.
    return 1 if !$self->{request} && $message{status} =~ /^1/ && $message{status} != 101;

    $self->{message} = \%message;
    $self->{state} = $self->_framing(\%message);
    if ($self->{state} eq 'length') {
        $self->{left} = $headers->{'content-length'};
    }
    return 1;
}

sub _framing {
    my ($self, $message) = @_;
    my $headers = $message->{headers};
    if (!$self->{request}) {
        return 'done' if $self->{head} || $message->{status} =~ /^(?:101|204|304)$/;
    }
    return 'chunk_size' if ($headers->{'transfer-encoding'} || '') =~ /chunked/i;
    if (defined $headers->{'content-length'}) {
        return 'done' unless $headers->{'content-length'} > 0;
        return 'length';
    }
    return 'done' if $self->{request};
    $message->{keepalive} = 0;
    return 'until_close';
}

sub _move {
    my ($self) = @_;
    my $bytes = substr $self->{buffer}, 0, $self->{left}, '';
    $self->{left} -= length $bytes;
    $self->{message}{body} .= $bytes;
    return $self->{left} == 0;
}

sub _parse_length {
    my ($self) = @_;
    return 0 unless $self->_move;
    $self->{state} = 'done';
    return 1;
}

sub _parse_until_close {
    my ($self) = @_;
    $self->{message}{body} .= $self->{buffer};
    $self->{buffer} = '';
    return 0;
}

sub _parse_chunk_size {
    my ($self) = @_;
    if ($self->{buffer} =~ s/^[ \t]*([0-9A-Fa-f]+)[ \t]*(?:;[^\r\n]*)?\r\n//) {
        $self->{left} = hex $1;
        $self->{state} = $self->{left} ? 'chunk_data' : 'trailer';
        return 1;
    }
    $self->{error} = 'bad chunk size' if $self->{buffer} =~ /^[^\n]*\n/ || length $self->{buffer} > 4096;
    return 0;
}

sub _parse_chunk_data {
    my ($self) = @_;
    return 0 unless $self->_move;
    $self->{state} = 'chunk_end';
    return 1;
}

sub _parse_chunk_end {
    my ($self) = @_;
    return 0 if length $self->{buffer} < 2;
    return !($self->{error} = 'no CRLF after a chunk') unless $self->{buffer} =~ s/^\r\n//;
    $self->{state} = 'chunk_size';
    return 1;
}

sub _parse_trailer {
    my ($self) = @_;
    if ($self->{buffer} =~ s/^\r\n//) { $self->{state} = 'done'; return 1 }
    return 0 unless $self->{buffer} =~ s/^([^\r\n]+)\r\n//;
    my ($name, $value) = split /:\s*/, $1, 2;
    $self->{message}{trailers}{lc $name} = $value;
    return 1;
}

1;
