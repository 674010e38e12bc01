# Nodes that are cut off from Redis, changed on both sides, and come back: they end equal, the later change
# counts, and what was removed stays so.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $redis = RegistryTest->redis;
my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
my @nodes = map { node(redis => $redis->url(port => $_->port), settings => { redis_timeout => ms(0.3 * time_scale()) }) } @proxies;
my ($one, $two) = @nodes;
connected($_) for @nodes;

# Cuts the cable of both, in one of two ways; and mends it, the first node's first or the other's.
my $round = 0;
sub cut {
    $round++;
    my $how = $round % 2 ? 'refuse' : 'blackhole';
    $_->$how for @proxies;
    ok(disconnected($_), "cut off ($how)") for @nodes;
    return;
}
sub mend {
    my @order = $round % 4 < 2 ? (0, 1) : (1, 0);
    for my $i (@order) {
        $proxies[$i]->heal;
        ok(pushed($nodes[$i], 10 * time_scale()), 'mended, ' . ($i ? 'the second' : 'the first') . ' node');
    }
    return;
}
# Two changes must not fall into one moment: later is later by this.
sub then_ { sleep 0.03 * time_scale(); return }

my @base = map { "127.0.0.9:$_" } 1 .. 4;
sub fresh {
    for my $addr (split ' ', known($one) . ' ' . known($two)) { call($one, remove => $addr) }
    agree(\@nodes, [], 'none');
    change($one, add => $_) for @base;
    agree(\@nodes, \@base, 'four servers on both');
    return;
}

for my $case (
    [ 'the first node is mended first', 0 ], [ 'the other way round', 2 ],
) {
    my ($what, $offset) = @$case;
    subtest "different servers: $what" => sub {
        $round = $offset;
        fresh();
        cut();
        change($one, add => '127.0.0.9:10', weight => 10);
        change($two, add => '127.0.0.9:11', weight => 11);
        change($one, remove => '127.0.0.9:1');
        change($two, remove => '127.0.0.9:2');
        disable($one, '127.0.0.9:3');
        change($two, weight => '127.0.0.9:4', weight => 4);
        change($one, add => '127.0.0.9:12', ns => 'apart');
        change($two, add => '127.0.0.9:13', ns => 'apart');
        is(known($one), '127.0.0.9:10 127.0.0.9:2 127.0.0.9:3 127.0.0.9:4', 'each goes on by itself');
        mend();
        agree(\@nodes, [ '127.0.0.9:10 10 1000 true up', '127.0.0.9:11 11 1000 true up', '127.0.0.9:3 1 1000 false down',
            '127.0.0.9:4 4 1000 true up' ], 'all of both is known to both');
        agree(\@nodes, [ '127.0.0.9:12', '127.0.0.9:13' ], 'and the namespace that both have made', ns => 'apart');
        redis_agrees($redis, \@nodes, 'and to Redis');
        sleep 3 * $INTERVAL;
        agree(\@nodes, [ map { "127.0.0.9:$_" } 10, 11, 3, 4 ], 'and stays so');
        call($one, remove => "127.0.0.9:$_", ns => 'apart') for 12, 13;
    };
}

# Changes of one server: [who, what ...] in the order of time, and what it is in the end on all.
my @STORIES = (
    [ 'the later weight counts', [ [ 0, weight => weight => 5 ], [ 1, weight => weight => 7 ] ], { weight => 7 } ],
    [ 'a later weight that is the one it had there', [ [ 0, weight => weight => 5 ], [ 1, weight => weight => 1 ] ], { weight => 1 } ],
    [ 'a later switch to what it was there', [ [ 1, toggle => action => 'disable' ], [ 0, toggle => action => 'enable' ] ], { state => 'up' } ],
    [ 'on whatever node', [ [ 1, weight => weight => 5 ], [ 0, weight => weight => 7 ] ], { weight => 7 } ],
    [ 'the later switch', [ [ 0, toggle => action => 'disable' ], [ 1, toggle => action => 'disable' ], [ 1, toggle => action => 'enable' ] ],
        { enabled => 'true', state => 'up' } ],
    [ 'off at last', [ [ 1, toggle => action => 'disable' ], [ 1, toggle => action => 'enable' ], [ 0, toggle => action => 'disable' ] ],
        { enabled => 'false', state => 'down' } ],
    [ 'a weight here and a switch there', [ [ 0, weight => weight => 6 ], [ 1, toggle => action => 'disable' ] ], { weight => 6, state => 'down' } ],
    [ 'the other way round', [ [ 0, toggle => action => 'disable' ], [ 1, weight => weight => 6 ] ], { weight => 6, state => 'down' } ],
    [ 'a drain, and a weight elsewhere', [ [ 1, 'drain' ], [ 0, weight => weight => 3 ] ], { weight => 3, state => 'draining' } ],
    [ 'a limit here and a weight there', [ [ 0, add => max_conns => 9 ], [ 1, weight => weight => 8 ] ], { max_conns => 9, weight => 8 } ],
    [ 'removed, and heartbeats elsewhere later', [ [ 0, 'remove' ], [ 1, 'refresh' ], [ 1, 'refresh' ] ], undef ],
    [ 'heartbeats, and removed elsewhere later', [ [ 1, 'refresh' ], [ 0, 'remove' ] ], undef ],
    [ 'removed, and a weight and a switch elsewhere later', [ [ 1, 'remove' ], [ 0, weight => weight => 9 ], [ 0, toggle => action => 'disable' ] ], undef ],
    [ 'removed on both', [ [ 1, 'remove' ], [ 0, 'remove' ] ], undef ],
    [ 'removed and added again, and heartbeats elsewhere', [ [ 0, 'remove' ], [ 1, 'refresh' ], [ 0, add => weight => 2 ], [ 1, 'refresh' ] ], { weight => 2, state => 'up' } ],
    [ 'removed and added again, and an older weight elsewhere', [ [ 1, weight => weight => 5 ], [ 0, 'remove' ], [ 0, add => weight => 2 ] ], { weight => 2 } ],
    [ 'removed and added again, and a later weight of the old one', [ [ 0, 'remove' ], [ 0, add => weight => 2 ], [ 1, weight => weight => 5 ] ], { state => 'up' } ],
    [ 'removed and added again, and removed elsewhere before that', [ [ 1, 'remove' ], [ 0, 'remove' ], [ 0, add => weight => 4 ] ], { weight => 4 } ],
    [ 'removed here, and later added there, where it was known', [ [ 0, 'remove' ], [ 1, add => weight => 3 ] ], { weight => 3, state => 'up' } ],
    [ 'added there, where it was known, and later removed here', [ [ 1, add => weight => 3 ], [ 0, 'remove' ] ], undef ],
    [ 'removed on both and added on one', [ [ 0, 'remove' ], [ 1, 'remove' ], [ 1, add => weight => 6 ] ], { weight => 6 } ],
);

subtest 'the same server, many stories' => sub {
    for my $half (0, 1) {
        $round = 2 * $half;
        for my $addr (split ' ', known($one)) { call($one, remove => $addr) }
        agree(\@nodes, [], 'none');
        my @addrs = map { '127.0.0.8:' . (100 * $half + $_) } 1 .. @STORIES;
        change($one, add => $_) for @addrs;
        agree(\@nodes, \@addrs, 'a server for each story');
        cut();
        # All first steps, then all second ones: time passes once for all.
        for my $step (0 .. 3) {
            for my $i (0 .. $#STORIES) {
                my $what = $STORIES[$i][1][$step] or next;
                my ($who, $endpoint, %fields) = @$what;
                change($nodes[$who], $endpoint => $addrs[$i], %fields);
            }
            then_();
        }
        mend();
        ok(same(\@nodes, 'default'), 'they are equal');
        sleep 2 * $INTERVAL;
        for my $i (0 .. $#STORIES) {
            my ($name, undef, $expected) = @{ $STORIES[$i] };
            becomes($_, $addrs[$i], $expected, $name, timeout => 1) for @nodes;
        }
        redis_agrees($redis, \@nodes, 'Redis agrees');
    }
};

subtest 'new on both: one server, added twice' => sub {
    $round = 0;
    fresh();
    cut();
    change($one, add => '127.0.0.9:20', weight => 2);
    then_();
    change($two, add => '127.0.0.9:20', weight => 5);
    change($two, add => '127.0.0.9:21', weight => 2);
    then_();
    change($one, add => '127.0.0.9:21', weight => 5);
    change($one, add => '127.0.0.9:22');
    change($one, remove => '127.0.0.9:22');
    mend();
    agree(\@nodes, [ @base, '127.0.0.9:20 5 1000 true up', '127.0.0.9:21 5 1000 true up' ], 'the later is the one');
    redis_agrees($redis, \@nodes, 'in Redis too');
};

subtest 'one node alone is cut off' => sub {
    fresh();
    $proxies[1]->blackhole;
    ok(disconnected($two), 'one is away');
    change($one, weight => '127.0.0.9:1', weight => 5);
    change($one, remove => '127.0.0.9:2');
    change($one, remove => '127.0.0.9:3');
    change($two, refresh => $_) for '127.0.0.9:2', '127.0.0.9:3';
    change($one, add => '127.0.0.9:3', weight => 3);
    disable($two, '127.0.0.9:4');
    is(server($two, '127.0.0.9:1')->{weight}, 1, 'and knows nothing of it');
    $proxies[1]->heal;
    agree(\@nodes, [ '127.0.0.9:1 5 1000 true up', '127.0.0.9:3 3 1000 true up', '127.0.0.9:4 1 1000 false down' ], 'back it learns all, and tells what it has', timeout => 10 * time_scale());
    redis_agrees($redis, \@nodes, 'Redis too');
};

subtest 'an hour of changes: many on both, at random' => sub {
    fresh();
    srand 4;
    for my $part (1 .. 3) {
        cut();
        for (1 .. 150) {
            my $node = $nodes[ rand 2 ];
            my $addr = '127.0.0.9:' . (1 + int rand 25);
            my @what = ([ 'add' ], [ 'add', weight => 1 + int rand 9 ], ['remove'], ['refresh'], [ 'weight', weight => int rand 9 ],
                [ 'toggle', action => 'disable' ], [ 'toggle', action => 'enable' ], ['drain']);
            my ($endpoint, @fields) = @{ $what[ rand @what ] };
            my $status = call($node, $endpoint => $addr, @fields)->{status};
            $status =~ /^(?:200|404)$/ or fail("$endpoint: $status");
        }
        mend();
        ok(same(\@nodes, 'default', timeout => 10 * time_scale()), 'they are equal after it');
        redis_agrees($redis, \@nodes, 'and so is Redis');
    }
};

for my $node (@nodes) {
    my $said = redis_log($node);
    like($said, qr/^used(?: away again)*$/, 'the log says each time that Redis went and that it is back, and nothing else');
    $node->log_is_clean;
}
done_testing;
