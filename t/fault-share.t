# A worker dies while it notes what other nodes are to be told, or while it is told that they know:
# the zone is whole, and in the end Redis and another node have all of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $redis = RegistryTest->redis;
my @registry = ("registry main 128k { cleanup_interval 1h; redis " . $redis->url . '; redis_interval 200ms;', '}
    upstream backend { registry main; }');
my $node = RegistryTest->fault(
    workers => 3,
    http => "@registry[0, 1]",
    server => 'location /upstream/ { registry_api main; }',
);
my $other = RegistryTest->nginx(
    http => "$registry[0] redis_node other; $registry[1]",
    server => 'location /upstream/ { registry_api main; }',
);
my %NS = (ns => 'backend', host => '10.0.0.1');

# Both nodes have just these servers.
sub both_have {
    my $expected = join ' ', sort @_;
    return wait_until(sub { 2 == grep { join(' ', sort keys %{ servers($_, 'backend') }) eq $expected } $node, $other });
}

my $round = 0;
sub dies_at {
    my ($point) = @_;
    return subtest $point => sub {
        my $port = 100 * ++$round;
        api($node, add => { %NS, port => $port + $_, weight => $_ }) for 1 .. 3;
        ok(both_have(map { '10.0.0.1:' . ($port + $_) } 1 .. 3), 'servers are known at both nodes');
        $node->arm("$point:1:worker");
        # Enough to reuse the slots of those that were removed.
        for my $n (1 .. 3) {
            api($node, refresh => { %NS, port => $port + $n });
            api($node, remove => { %NS, port => $port + $n });
        }
        for my $n (1 .. 150) {
            last unless eval { $node->waiting };
            api($node, add => { %NS, host => '10.0.1.1', port => $n });
            sleep 0.05 if $n == 1;
            api($node, remove => { %NS, host => '10.0.1.1', port => $n });
            sleep 0.02;
        }
        ok($node->died, 'a worker dies there, and is replaced');
        # Whoever did not get an answer asks again.
        for my $server (keys %{ servers($node, 'backend') }) {
            my ($host, $n) = split /:/, $server;
            api($node, remove => { ns => 'backend', host => $host, port => $n });
        }
        $node->is_whole(0, 'the zone is whole');
        ok(both_have(), 'what was removed is gone at both nodes');
        is_deeply([ $redis->cli(HKEYS => 'upstream:backend:servers:meta') ], [ [] ], 'and in Redis')
            or diag(explain($redis->cli(HKEYS => 'upstream:backend:servers:meta')));
    };
}

dies_at($_) for $node->points_of('share');
$node->log_is_clean;
$other->log_is_clean;
done_testing;
