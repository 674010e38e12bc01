package RegistryTest::Resp;

# A client of Redis over a plain socket: one object is one connection. Values are bytes,
# in both directions.
#
#     my $client = RegistryTest::Resp->new('127.0.0.1:6379', password => '...');
#     $client->call(SET => key => "\0\1") eq 'OK';

use strict;
use warnings;

use Errno qw(EAGAIN EINTR);
use RegistryTest::Client ();
use RegistryTest::Process qw(time_scale);
use Time::HiRes qw(time);

# address: HOST:PORT or unix:/path. user, password, db, and timeout (seconds for one
# answer, 5).
sub new {
    my ($class, $address, %opt) = @_;
    my $self = bless { timeout => 5 * time_scale(), %opt, address => $address, buffer => '' }, $class;
    $self->{socket} = RegistryTest::Client::start_connect($address);
    $self->_wait(1, time + $self->{timeout});
    my $error = RegistryTest::Client::connect_error($self->{socket});
    die "connect to $address: $error\n" if $error;
    $self->call(AUTH => defined $opt{user} ? $opt{user} : (), $opt{password}) if defined $opt{password};
    $self->call(SELECT => $opt{db}) if $opt{db};
    return $self;
}

# The answer to a command: bytes, a number, undef, or an array of those. An error
# dies with what Redis said.
sub call {
    my ($self, @words) = @_;
    $self->send(@words);
    return $self->receive;
}

# Several commands at once, arrays of words; the answers in their order.
sub pipeline {
    my ($self, @commands) = @_;
    $self->send(@$_) for @commands;
    return map { $self->receive } @commands;
}

# Only sends; receive takes the answer later.
sub send {
    my ($self, @words) = @_;
    utf8::encode($_) for grep { utf8::is_utf8($_) } @words;
    my $bytes = '*' . @words . "\r\n" . join '', map { '$' . length($_) . "\r\n$_\r\n" } @words;
    my ($sent, $deadline) = (0, time + $self->{timeout});
    while ($sent < length $bytes) {
        my $n = syswrite $self->{socket}, $bytes, length($bytes) - $sent, $sent;
        if    (defined $n)                  { $sent += $n }
        elsif ($! == EAGAIN || $! == EINTR) { $self->_wait(1, $deadline) }
        else                                { die "write to $self->{address}: $!\n" }
    }
    return;
}

sub receive {
    my ($self, %opt) = @_;
    my $deadline = time + ($opt{timeout} || $self->{timeout});
    my $value = $self->_value($deadline);
    die "$$value\n" if ref $value eq 'SCALAR';
    return $value;
}

sub close { my ($self) = @_; CORE::close delete $self->{socket} if $self->{socket}; return }

sub _wait {
    my ($self, $for_write, $deadline) = @_;
    my $bits = '';
    vec($bits, fileno $self->{socket}, 1) = 1;
    my $left = $deadline - time;
    die "timeout\n" if $left <= 0;
    if ($for_write) { select undef, $bits, undef, $left }
    else            { select $bits, undef, undef, $left }
    return;
}

sub _fill {
    my ($self, $deadline) = @_;
    while (1) {
        my $n = sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};
        return if $n;
        die "$self->{address} has closed the connection\n" if defined $n;
        die "read from $self->{address}: $!\n" unless $! == EAGAIN || $! == EINTR;
        $self->_wait(0, $deadline);
    }
}

sub _bytes {
    my ($self, $count, $deadline) = @_;
    $self->_fill($deadline) while length $self->{buffer} < $count;
    return substr $self->{buffer}, 0, $count, '';
}

sub _value {
    my ($self, $deadline) = @_;
    my $end;
    $self->_fill($deadline) while ($end = index $self->{buffer}, "\r\n") < 0;
    my ($type, $rest) = unpack 'a a*', substr $self->{buffer}, 0, $end + 2, '';
    $rest =~ s/\r\n\z//;
    return $rest if $type eq '+';
    return \$rest if $type eq '-';
    return 0 + $rest if $type eq ':';
    return if $rest < 0;
    if ($type eq '$') {
        my $bytes = $self->_bytes($rest + 2, $deadline);
        return substr $bytes, 0, $rest;
    }
    die "no answer of Redis: $type$rest\n" unless $type eq '*';
    # Within an array an error is a value like the others.
    return [ map { scalar $self->_value($deadline) } 1 .. $rest ];
}

1;
