# A master of Redis that dies and a replica that takes its place: by Sentinel, and with the loss of what had
# been written last.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $backend = RegistryTest->backend(name => 'web');

subtest 'Sentinel makes a replica the master' => sub {
    my $master = RegistryTest->redis(password => 'for-redis');
    my $replica = RegistryTest->redis(password => 'for-redis', replicaof => $master);
    my $sentinel = RegistryTest->sentinel(master => $master, replicas => [$replica], password => 'for-sentinel');
    my @nodes = map { node(redis => $sentinel->url) } 1, 2;
    connected($_) or diag($nodes[0]->error_log) for @nodes;
    change($nodes[0], add => $backend, max_conns => 0, ns => $_) for qw(default other);
    change($nodes[0], add => "127.0.0.9:$_") for 1 .. 3;
    becomes($nodes[1], $backend, {}, 'a server to serve requests', ns => 'other');
    my @servers = ($backend->address, map { "127.0.0.9:$_" } 1 .. 3);
    agree(\@nodes, \@servers, 'servers on both, by way of the master that Sentinel names');
    is(scalar(keys %{ $master->registry }), 4, 'which has them');
    change($nodes[1], remove => '127.0.0.9:3');
    agree(\@nodes, [ @servers[ 0 .. 2 ] ], 'one is removed');
    ok(pushed($_), 'everywhere') for @nodes;
    $replica->in_step;

    my @loads = map { load_start(url => $_->url('/other/'), conns => 2, pause => 0.01) } @nodes;
    my $since = time;
    $master->stop('KILL');
    ok(disconnected($nodes[0]), 'killed, it is away');
    change($nodes[0], add => '127.0.0.9:10');
    change($nodes[1], remove => '127.0.0.9:1');
    change($nodes[0], weight => $backend, weight => 5);
    my $new = $sentinel->promoted($master->port, $replica);
    is($new, $replica, 'the replica is the master') or return;
    diag(sprintf 'promoted after %.1f s', time - $since);
    agree(\@nodes, [ $backend->address . ' 5 0 true up', '127.0.0.9:10', '127.0.0.9:2' ], 'changes made meanwhile reach both', timeout => 10 * time_scale());
    diag(sprintf 'and both were equal after %.1f s', time - $since);
    my @sums = map { load_stop($_) } @loads;
    is_deeply([ map { keys %{ $_->{status} } } @sums ], [ 200, 200 ], 'all requests were served') or diag(explain(\@sums));
    redis_agrees($replica, \@nodes, 'the new master has it');

    # The old one comes back, and would answer who asks it.
    $master->start;
    ok(wait_until(sub { eval { $master->info('replication')->{role} eq 'slave' } }, 20 * time_scale()), 'the old one is back as a replica');
    change($nodes[1], add => '127.0.0.9:11');
    becomes($nodes[0], '127.0.0.9:11', {}, 'changes go to the new one');
    $master->{replicaof} = $replica;
    $master->in_step;

    # A failover without a fault: the old master is there, and takes no writes any more.
    $sentinel->failover;
    is($sentinel->promoted($replica->port, $master), $master, 'a failover that was asked for');
    change($nodes[0], remove => '127.0.0.9:2');
    change($nodes[1], add => '127.0.0.9:12');
    agree(\@nodes, [ $backend->address, map { "127.0.0.9:$_" } 10, 11, 12 ], 'nothing is lost', timeout => 15 * time_scale());
    redis_agrees($master, \@nodes, 'the master of now has it', timeout => 10 * time_scale());

    for my $node (@nodes) {
        my $said = redis_log($node);
        # What the old master was told last, the new one may not know.
        like($said, qr/^used(?: away again(?: lost)?){1,2}$/, 'the log');
        unlike($node->error_log, qr/for-redis|for-sentinel/, 'has no password');
        $node->log_is_clean;
    }
};

subtest 'Sentinels that are away, and a service that they do not know' => sub {
    my $master = RegistryTest->redis;
    my $sentinel = RegistryTest->sentinel(master => $master);
    my $node = node(redis => $sentinel->url =~ s{/main/}{/other/}r);
    my $line = $node->wait_log(qr/can't be used/);
    like($line || '', qr/other/, 'the log names the service');
    my $good = node(redis => $sentinel->url =~ s{//}{'//127.0.0.1:' . free_port() . ','}er);
    ok(connected($good, 10 * time_scale()), 'one of two Sentinels is enough');
    change($good, add => '127.0.0.9:1');
    ok(wait_until(sub { keys %{ $master->registry } == 1 }), 'it is in step');
    my $from = $good->log_size;
    $sentinel->stop;
    change($good, add => '127.0.0.9:2');
    ok(wait_until(sub { keys %{ $master->registry } == 2 }), 'once connected it needs none');
    log_says($good, '', 'and says nothing', $from);
    log_says($node, 'away', 'the log of the other says it once');
    $_->log_is_clean for $node, $good;
};

# The master and a replica, two nodes behind proxies to the master, and what they know.
sub pair {
    my $master = RegistryTest->redis;
    my $replica = RegistryTest->redis(replicaof => $master);
    my @proxies = map { RegistryTest->proxy($master->address) } 1, 2;
    my @nodes = map { node(redis => $master->url(port => $_->port)) } @proxies;
    connected($_) or die "no sync\n" for @nodes;
    change($nodes[0], add => "127.0.0.9:$_") for 1 .. 5;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 5 ], 'five servers');
    ok(pushed($_), 'are in Redis') for @nodes;
    ok($replica->in_step, 'and in the replica');
    return ($master, $replica, \@proxies, @nodes);
}
my $AFTER = [ '127.0.0.9:1 7 1000 true up', '127.0.0.9:2 1 1000 false down', '127.0.0.9:4', '127.0.0.9:5', '127.0.0.9:6', '127.0.0.9:7' ];
sub changes {
    my (@nodes) = @_;
    change($nodes[0], weight => '127.0.0.9:1', weight => 7);
    disable($nodes[-1], '127.0.0.9:2');
    change($nodes[0], remove => '127.0.0.9:3');
    change($nodes[-1], add => '127.0.0.9:6');
    change($nodes[0], add => '127.0.0.9:7', ns => 'default');
    change($nodes[-1], add => '127.0.0.9:8', ns => 'fresh');
    change($nodes[0], remove => '127.0.0.9:4');
    # What follows at once is in sync-order.t.
    sleep $INTERVAL;
    change($nodes[0], add => '127.0.0.9:4');
    return;
}

for my $case ([ 'the first node moves first', 0, 1 ], [ 'the second node moves first', 1, 0 ]) {
    my ($what, @order) = @$case;
    subtest "a failover that rolls back: $what" => sub {
        my ($master, $replica, $proxies, @nodes) = pair();
        $replica->cli(REPLICAOF => 'NO', 'ONE');
        changes(@nodes);
        agree(\@nodes, $AFTER, 'changes that the replica has not');
        agree(\@nodes, ['127.0.0.9:8'], 'nor the namespace', ns => 'fresh');
        ok(pushed($_), 'though all was pushed') for @nodes;
        is(join(' ', sort keys %{ $replica->registry }), join(' ', map { "127.0.0.9:$_" } 1 .. 5), 'it is as it was');
        for my $i (@order) {
            $proxies->[$i]->target($replica->address);
            sleep 2 * $INTERVAL;
        }
        agree(\@nodes, $AFTER, 'no change is lost, and what was removed stays so', timeout => 10 * time_scale());
        redis_agrees($replica, \@nodes, 'in Redis too');
        redis_agrees($replica, \@nodes, 'in the new namespace', ns => 'fresh');
        change($nodes[0], weight => '127.0.0.9:5', weight => 55);
        change($nodes[1], remove => '127.0.0.9:6');
        agree(\@nodes, [ @$AFTER[ 0 .. 2 ], '127.0.0.9:5 55 1000 true up', '127.0.0.9:7' ], 'and what is changed then is known to both');
        sleep 3 * $INTERVAL;
        agree(\@nodes, [ map { "127.0.0.9:$_" } 1, 2, 4, 5, 7 ], 'and stays so');
        log_says($_, qr/^used(?: away again)?(?: lost)?$/, 'the log') for @nodes;
        $_->log_is_clean for @nodes;
    };
}

subtest 'a failover that rolls back what only one node has seen' => sub {
    my ($master, $replica, $proxies, @nodes) = pair();
    $replica->cli(REPLICAOF => 'NO', 'ONE');
    $proxies->[1]->refuse;
    ok(disconnected($nodes[1]), 'the second node is cut off');
    changes($nodes[0]);
    ok(pushed($nodes[0]), 'changes on the first, which it has pushed');
    $proxies->[1]->target($replica->address);
    $proxies->[1]->heal;
    ok(connected($nodes[1], 10 * time_scale()), 'the second finds the replica');
    change($nodes[1], weight => '127.0.0.9:5', weight => 55);
    ok(pushed($nodes[1]), 'and goes on, with what it knows');
    sleep 2 * $INTERVAL;
    $proxies->[0]->target($replica->address);
    agree(\@nodes, [ @$AFTER[ 0 .. 2 ], '127.0.0.9:5 55 1000 true up', '127.0.0.9:6', '127.0.0.9:7' ],
        'the first comes, and both know all', timeout => 10 * time_scale());
    redis_agrees($replica, \@nodes, 'Redis too');
    sleep 3 * $INTERVAL;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1, 2, 4, 5, 6, 7 ], 'and it stays so');
    $_->log_is_clean for @nodes;
};

subtest 'a failover to one that has nothing at all' => sub {
    my ($master, $replica, $proxies, @nodes) = pair();
    my $empty = RegistryTest->redis;
    $_->target($empty->address) for @$proxies;
    change($nodes[0], remove => '127.0.0.9:1');
    agree(\@nodes, [ map { "127.0.0.9:$_" } 2 .. 5 ], 'nobody loses a server', timeout => 10 * time_scale());
    redis_agrees($empty, \@nodes, 'Redis is filled', timeout => 10 * time_scale());
    like(join(' ', map { redis_log($_) } @nodes), qr/lost/, 'the log says why');
    $_->log_is_clean for @nodes;
};

done_testing;
