package Bench::Held;

# A backend that is many servers, one at each address of this machine, and writes down every
# few milliseconds how many requests each of them holds.

use strict;
use warnings;

use parent -norequire, 'RegistryTest::Backend';
use RegistryTest::Backend ();
use RegistryTest::Process qw(slurp temp_dir);
use Socket;
use Time::HiRes qw(time);

my $EVERY = 0.01;

sub new {
    my ($class, $servers) = @_;
    my $self = $class->SUPER::new(
        host => '0.0.0.0', backlog => 4096, start => 0, samples => temp_dir() . '/samples', servers => $servers);
    # They are no settings of a request.
    %$self = (%$self, %{ $self->{defaults} }, defaults => {});
    return $self->start;
}

# What was written down between two times: [time, count, count, ...] each.
sub samples {
    my ($self, $from, $to) = @_;
    my $size  = 8 + 4 * $self->{servers};
    my $bytes = slurp($self->{samples});
    return grep { $_->[0] >= $from && $_->[0] < $to }
        map { [ unpack 'd L*', substr $bytes, $_ * $size, $size ] } 0 .. int(length($bytes) / $size) - 1;
}

# From here on: inside the backend's process.

sub _serve {
    my ($self, @arguments) = @_;
    open $self->{file}, '>', $self->{samples} or die "$self->{samples}: $!\n";
    binmode $self->{file};
    $self->{held} = [ (0) x $self->{servers} ];
    $self->{next_sample} = time;
    return $self->SUPER::_serve(@arguments);
}

sub _turn {
    my ($self) = @_;
    if (time >= $self->{next_sample}) {
        syswrite $self->{file}, pack 'd L*', time, @{ $self->{held} };
        $self->{next_sample} = time + $EVERY;
        # So that a turn ends before the next one is due.
        $self->_after($EVERY, { closed => 0 }, sub { });
    }
    return $self->SUPER::_turn;
}

# Which server a connection is one to, counted from 127.0.1.1 on.
sub _server_of {
    my ($connection) = @_;
    my (undef, $packed) = unpack_sockaddr_in(getsockname $connection->{socket});
    my (undef, undef, $net, $host) = unpack 'C4', $packed;
    return ($net - 1) * 250 + $host - 1;
}

sub _next {
    my ($self, $connection) = @_;
    my $before = $connection->{active};
    $self->SUPER::_next($connection);
    # Without a delay it has been answered already.
    return if $before || !$connection->{active};
    $connection->{server} = _server_of($connection) unless defined $connection->{server};
    my $server = $connection->{server};
    return if $server < 0 || $server >= $self->{servers};
    $connection->{held} = 1;
    $self->{held}[$server]++;
    return;
}

sub _end_request {
    my ($self, $connection) = @_;
    $self->{held}[ $connection->{server} ]-- if delete $connection->{held};
    return $self->SUPER::_end_request($connection);
}

1;
