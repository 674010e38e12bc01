package RegistryTest::Cgi;

# The backend's ear for FastCGI, SCGI and uwsgi: the same interface as that of
# RegistryTest::Http, and what those protocols put around an answer. One request at a
# time on a connection, as nginx sends them.

use strict;
use warnings;

my %RECORD = (begin => 1, end => 3, params => 4, stdin => 5, stdout => 6);

# By the first byte of a connection: uwsgi has a modifier of 0, FastCGI the version 1,
# SCGI a length in digits. Nothing for the capitals of an HTTP method.
sub protocol_of {
    my ($byte) = @_;
    return $byte eq "\0" ? 'uwsgi' : $byte eq "\1" ? 'fastcgi' : $byte =~ /\d/ ? 'scgi' : undef;
}

sub new {
    my ($class, $protocol) = @_;
    return bless { protocol => $protocol, buffer => '', params => '', stdin => '' }, $class;
}

sub feed {
    my ($self, $bytes) = @_;
    $self->{buffer} .= $bytes;
    my $parse = "_parse_$self->{protocol}";
    $self->$parse unless $self->{message};
    return $self->done;
}

sub done  { return defined $_[0]{message} }
sub error { return $_[0]{error} }
sub rest  { return $_[0]{buffer} }

sub take {
    my ($self) = @_;
    my $message = delete $self->{message};
    @$self{qw(params stdin vars)} = ('', '', undef);
    return $message;
}

# The variables as an HTTP request would have said it.
sub _finish {
    my ($self, $vars, $body) = @_;
    my %headers = map {
        (my $name = lc) =~ tr/_/-/;
        $name =~ s/^http-//;
        ($name => $vars->{$_});
    } grep { /^HTTP_|^CONTENT_(?:LENGTH|TYPE)$/ && length $vars->{$_} } keys %$vars;
    $self->{message} = {
        method  => $vars->{REQUEST_METHOD} || 'GET', uri => $vars->{REQUEST_URI} || '/', version => '1.0',
        headers => \%headers, body => $body, keepalive => $self->{keep} || 0, vars => $vars,
    };
    return;
}

# SCGI and uwsgi: the variables, and a body as long as one of them says.
sub _finish_with_body {
    my ($self) = @_;
    my $length = $self->{vars}{CONTENT_LENGTH} || 0;
    return if length $self->{buffer} < $length;
    return $self->_finish($self->{vars}, substr $self->{buffer}, 0, $length, '');
}

sub _parse_scgi {
    my ($self) = @_;
    if (!$self->{vars}) {
        my ($digits, $length) = $self->{buffer} =~ /^((\d+):)/ or return;
        return if length $self->{buffer} < length($digits) + $length + 1;
        substr $self->{buffer}, 0, length $digits, '';
        # Each ends with a NUL, and a comma follows the last.
        $self->{vars} = { unpack '(Z* Z*)*', substr $self->{buffer}, 0, $length, '' };
        substr $self->{buffer}, 0, 1, '';
    }
    return $self->_finish_with_body;
}

sub _parse_uwsgi {
    my ($self) = @_;
    if (!$self->{vars}) {
        return if length $self->{buffer} < 4;
        my $length = unpack 'x v', $self->{buffer};
        return if length $self->{buffer} < 4 + $length;
        substr $self->{buffer}, 0, 4, '';
        $self->{vars} = { unpack '(v/a v/a)*', substr $self->{buffer}, 0, $length, '' };
    }
    return $self->_finish_with_body;
}

sub _parse_fastcgi {
    my ($self) = @_;
    while (length $self->{buffer} >= 8) {
        my ($type, $id, $length, $padding) = unpack 'x C n n C', $self->{buffer};
        return if length $self->{buffer} < 8 + $length + $padding;
        my $content = substr substr($self->{buffer}, 0, 8 + $length + $padding, ''), 8, $length;
        if ($type == $RECORD{begin}) {
            $self->{id} = $id;
            $self->{keep} = unpack('x2 C', $content) & 1;
        }
        elsif ($type == $RECORD{params}) { $self->{params} .= $content }
        elsif ($type == $RECORD{stdin}) {
            $self->{stdin} .= $content;
            return $self->_finish({ _pairs($self->{params}) }, $self->{stdin}) if !$length;
        }
    }
    return;
}

# Names and values, each length in one byte or in four with the highest bit set.
sub _pairs {
    my ($bytes) = @_;
    my @list;
    while (length $bytes) {
        my @length = map {
            ord($bytes) & 0x80 ? unpack('N', substr $bytes, 0, 4, '') & 0x7fffffff
                : ord substr $bytes, 0, 1, '';
        } 1, 2;
        push @list, map { substr $bytes, 0, $_, '' } @length;
    }
    return @list;
}

sub _record {
    my ($self, $type, $content) = @_;
    return pack('C C n n C C', 1, $RECORD{$type}, $self->{id}, length $content, 0, 0) . $content;
}

# Bytes of an answer as they go over the wire, and what ends it.
sub frame {
    my ($self, $bytes) = @_;
    return $bytes unless $self->{protocol} eq 'fastcgi';
    return join '', map { $self->_record(stdout => $_) } unpack '(a32768)*', $bytes;
}

sub end {
    my ($self) = @_;
    return '' unless $self->{protocol} eq 'fastcgi';
    return $self->_record(stdout => '') . $self->_record(end => pack 'N C x3', 0, 0);
}

1;
