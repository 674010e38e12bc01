# What the files keepalive-*.t share: backends that say which of their connections a request
# came on, and what to ask them.
#
# Each answer has the header X-Connection: N.M, the Mth request on the Nth connection that
# brought any. Beside the settings of RegistryTest::Backend a request may say
#
#     raw=NAME      these bytes as the answer: raw => { NAME => bytes } of the backend, where
#                   %C stands for N.M
#     late=0.1      bytes that nobody asked for, so many seconds after the answer
#     leave=0.1     close the connection so many seconds after the answer
#     early=1       an answer before the body of the request is here

package NumberedBackend;

use strict;
use warnings;

use RegistryTest::Backend;

our @ISA = ('RegistryTest::Backend');

sub new {
    my ($class, %opt) = @_;
    my ($raw, $start) = (delete $opt{raw}, delete $opt{start});
    my $self = $class->SUPER::new(%opt, start => 0);
    $self->{raw} = $raw || {};
    $self->start unless defined $start && !$start;
    return $self;
}

sub _answer {
    my ($self, $connection, $request, $how) = @_;
    $connection->{number} ||= ++$self->{numbers};
    my $number = "$connection->{number}." . ($connection->{served} + 1);
    if (my $late = $how->{late}) {
        $self->_after($late, $connection, sub {
            $connection->{out} .= 'unasked';
            $self->_flush($connection);
        });
    }
    if (my $leave = $how->{leave}) {
        $self->_after($leave, $connection, sub { $self->_close($connection) });
    }
    if (defined(my $name = $how->{raw})) {
        (my $bytes = $self->{raw}{$name}) =~ s/%C/$number/g;
        $connection->{out} .= $bytes;
        return $self->_flush($connection);
    }
    $how->{header} = "X-Connection: $number" unless $how->{header};
    return $self->SUPER::_answer($connection, $request, $how);
}

sub _next {
    my ($self, $connection) = @_;
    my $parser = $connection->{parser};
    if (!$connection->{active} && !$connection->{closed} && !$connection->{early} && !$parser->done && $parser->isa('RegistryTest::Http')) {
        my $request = $parser->partial;
        if ($request && $request->{uri} =~ /\bearly=1/) {
            $connection->{early} = 1;
            $connection->{out} .= "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            return $self->_flush($connection);
        }
    }
    return $self->SUPER::_next($connection);
}

package main;

use strict;
use warnings;
use RegistryTest;

# The number of the connection that a response came on, with what is before it.
sub number {
    my ($r) = @_;
    my $number = $r->{headers}{'x-connection'};
    return defined $number ? $number : "none ($r->{status})";
}

# Requests on connections of their own that are answered one after the other, a tenth of a
# second apart: their responses in that order.
sub at_once {
    my ($node, $count, $path) = @_;
    my @clients = map {
        my $client = $node->client;
        my $delay = 0.1 * ($_ + 1) * time_scale();
        $client->send("GET $path?delay=$delay HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        $client;
    } 1 .. $count;
    return map { $_->response } @clients;
}

# Connections that a backend has open, once they are as many as expected or time is up.
sub open_at {
    my ($backend, $expected, $timeout) = @_;
    my $open;
    wait_until(sub { ($open = $backend->stats->{open}) == $expected }, $timeout);
    return $open;
}

# Waits until nothing is in flight in any of the namespaces: one test.
sub nothing_in_flight {
    my ($node, @namespaces) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my %left;
    wait_until(sub {
        %left = map { my $n = connections($node, $_); $n ? ($_ => $n) : () } @namespaces;
        return !%left;
    });
    return is_deeply(\%left, {}, 'nothing is in flight at the end');
}

1;
