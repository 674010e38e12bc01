# What the files sync-silence*.t share: two nodes, each behind a proxy, and heartbeats to one of them.

use strict;
use warnings;

use FindBin;
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our $TTL = 1 * time_scale();

sub two {
    my ($redis, @settings) = @_;
    my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
    my @nodes = map {
        node(redis => $redis->url(port => $_->port), settings => { redis_timeout => ms(0.3 * time_scale()), heartbeat_ttl => ms($TTL), @settings })
    } @proxies;
    connected($_) or die "no sync\n" for @nodes;
    return (@proxies, @nodes);
}
sub state_of { my $server = server(@_); return $server ? $server->{state} : 'unknown' }

# Heartbeats to a node, for so many seconds, and what each of the nodes says of the server in that time.
sub beat {
    my ($seconds, $server, $to, @nodes) = @_;
    my ($until, @states) = (time + $seconds);
    while (time < $until) {
        change($to, refresh => $server);
        for my $i (0 .. $#nodes) { $states[$i]{ state_of($nodes[$i], $server) } = 1 }
        sleep $TTL / 8;
    }
    return map { join ' ', sort keys %$_ } @states;
}

# The same until something is so; true when it is.
sub beat_until {
    my ($condition, $server, $to) = @_;
    return wait_until(sub { change($to, refresh => $server); $condition->() }, 10 * time_scale(), $TTL / 8);
}

1;
