# Requests in flight are counted over all nodes: each tells the others its mean, and adds theirs to its own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
$INTERVAL = 0.4 * time_scale();
my $redis = RegistryTest->redis;
my ($front, $back) = map { RegistryTest->proxy($redis->address) } 1, 2;
my ($one, $two) = map { node(redis => $redis->url(port => $_->port)) } $front, $back;
my @nodes = ($one, $two);
my ($first, $second) = map { RegistryTest->backend(name => $_) } qw(a b);
connected($_) for @nodes;

sub counts {
    my ($node, $backend) = @_;
    my $server = server($node, $backend) or return 'unknown';
    return "$server->{connections} $server->{local_connections}";
}
# Waits for "all local" of a server; one test.
sub counted {
    my ($node, $backend, $expected, $name, $timeout) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    my $ok = wait_until(sub { ($is = counts($node, $backend)) eq $expected }, $timeout);
    ok($ok, $name) or diag("$is instead of $expected");
    return $ok;
}
sub scored {
    my ($backend, $expected, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    my $ok = wait_until(sub { ($is = $redis->cli(ZSCORE => 'upstream:servers:zset', $backend->address) // 'none') eq $expected });
    ok($ok, $name) or diag("$is instead of $expected");
    return $ok;
}
sub idle {
    my ($name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    subtest $name => sub {
        for my $backend (grep { server($one, $_) } $first, $second) {
            counted($_, $backend, '0 0', 'none on a node') for @nodes;
            scored($backend, 0, 'none in Redis');
        }
    };
    return;
}

change($one, add => $first, max_conns => 0);
becomes($two, $first, {}, 'a server on both');

subtest 'held on one, they are seen on the other and in Redis' => sub {
    my @held = hold($one, 5);
    counted($one, $first, '5 5', 'five of its own');
    counted($two, $first, '5 0', 'five, of which none is its own');
    scored($first, 5, 'five in the ZSET');
    my @more = hold($two, 2);
    counted($two, $first, '7 2', 'with two on the other, both see seven');
    counted($one, $first, '7 5', 'each knowing its own');
    scored($first, 7, 'the ZSET too');
    release(@held);
    counted($one, $first, '2 0', 'those that end go');
    counted($two, $first, '2 2', 'on both');
    scored($first, 2, 'and in Redis');
    release(@more);
    idle('and all are 0');
};

subtest 'its own count is exact, the others are their mean' => sub {
    my @held = hold($one, 4);
    counted($two, $first, '4 0', 'four held');
    my @own = hold($two, 1);
    ok(wait_until(sub { counts($two, $first) eq '5 1' }, 0.3 * $SLACK), 'one of its own counts at once');
    release(@own);
    ok(wait_until(sub { counts($two, $first) eq '4 0' }, 0.3 * $SLACK), 'and is gone at once');
    release(@held);
    idle('then 0');
    # Short ones, a few at once, all the time.
    my $load = load_start(url => $one->url('/?delay=0.03'), conns => 6);
    sleep 3 * $INTERVAL;
    my @seen = map { sleep $INTERVAL / 3; (split / /, counts($two, $first))[0] } 1 .. 9;
    load_stop($load);
    ok(!(grep { $_ < 3 || $_ > 7 } @seen), 'many short ones are seen as what they are on average') or diag("@seen");
    idle('and end at 0');
};

subtest 'least_conn avoids a server that another node keeps busy' => sub {
    my @held = hold($one, 4);
    counted($one, $first, '4 4', 'four on the only server');
    change($one, add => $second, max_conns => 0);
    becomes($two, $second, {}, 'a second server, idle');
    counted($two, $first, '4 0', 'the first has four from the other node');
    # The choice follows what the others have in steps.
    sleep 6 * $INTERVAL;
    my $sum = parallel(2, 40, $two->url('/'));
    is_deeply($sum->{backend}, { b => 40 }, 'all go to the idle one');
    # A mean is rounded somewhere: one more or less.
    my @local;
    @held = (@held, hold($two, 4));
    ok(wait_until(sub {
        @local = map { server($two, $_)->{local_connections} } $first, $second;
        return $local[0] + $local[1] == 4;
    }), 'four of its own');
    cmp_ok($local[1], '>=', 3, 'are on the idle one') or diag("@local");
    @held = (@held, hold($two, 4));
    ok(wait_until(sub {
        @local = map { server($two, $_)->{local_connections} } $first, $second;
        return $local[0] + $local[1] == 8;
    }), 'and four more');
    ok($local[0] >= 1 && $local[0] <= 3, 'are shared, so that all have about as many') or diag("@local");
    release(@held);
    idle('then 0');
    change($one, remove => $second);
    becomes($two, $second, undef, 'the second goes');
};

subtest 'max_conns is for all nodes together' => sub {
    change($one, add => $first, max_conns => 3);
    becomes($two, $first, { max_conns => 3 }, 'three at once');
    my @held = hold($one, 2);
    counted($two, $first, '2 0', 'two on one node');
    is($two->get('/')->{status}, 200, 'the other may have one');
    @held = (@held, hold($one, 1));
    counted($two, $first, '3 0', 'three');
    my $from = $two->log_size;
    is($two->get('/')->{status}, 502, 'and none');
    like($two->wait_log(qr/no eligible server/, 5, $from), qr/1 at max_conns/, 'which the log explains');
    is($one->get('/')->{status}, 502, 'nor has the first a fourth');
    release(shift @held);
    ok(wait_until(sub { $two->get('/')->{status} == 200 }), 'when one has ended there is room again');
    release(@held);
    idle('then 0');
    change($one, add => $first, max_conns => 0);
    becomes($two, $first, { max_conns => 0 }, 'no limit');
};

subtest 'a node that dies is counted no more' => sub {
    my @held = hold($one, 3);
    my @own = hold($two, 1);
    counted($two, $first, '4 1', 'three on one node, one on the other');
    $one->kill_all;
    my $since = time;
    counted($two, $first, '1 1', 'killed, its share is taken back', 3 * $INTERVAL + $SLACK);
    my $took = time - $since;
    cmp_ok($took, '<=', 3 * $INTERVAL + 0.3 * $SLACK, 'within three times redis_interval');
    scored($first, 1, 'in Redis as well');
    ok(wait_until(sub { sync($two)->{nodes} == 1 }), 'one node is left');
    release(@held);
    ok($one->start, 'it comes back');
    connected($one);
    agree(\@nodes, [ $first->address ], 'with all it had');
    counted($one, $first, '1 0', 'it sees what the other has');
    @held = hold($one, 2);
    counted($two, $first, '3 1', 'and counts again');
    ok(wait_until(sub { sync($two)->{nodes} == 2 }), 'two nodes');
    release(@held, @own);
    idle('then 0');
};

subtest 'so is one that is cut off, until it is there again' => sub {
    my @held = hold($one, 3);
    counted($two, $first, '3 0', 'three on one node');
    $front->blackhole;
    my $since = time;
    counted($two, $first, '0 0', 'cut off, its share is taken back', 3 * $INTERVAL + $SLACK);
    cmp_ok(time - $since, '<=', 3 * $INTERVAL + 0.3 * $SLACK, 'within three times redis_interval');
    counted($one, $first, '3 3', 'itself it counts on');
    scored($first, 0, 'in Redis none is left');
    $front->heal;
    counted($two, $first, '3 0', 'back again it is counted', 5 * time_scale());
    scored($first, 3, 'in Redis too');
    release(@held);
    idle('then 0');
};

subtest 'the one that writes the sums is gone, and another does' => sub {
    my @held = map { hold($_, 2) } @nodes;
    scored($first, 4, 'four');
    for my $proxy ($front, $back) {
        $proxy->blackhole;
        scored($first, 2, 'without the one or the other two');
        $proxy->heal;
        scored($first, 4, 'then four again');
    }
    release(@held);
    idle('then 0');
};

subtest 'a reload and a killed worker leave no count behind' => sub {
    my @held = hold($one, 4);
    counted($two, $first, '4 0', 'four on one node');
    $one->reload(wait => 'new');
    counted($two, $first, '4 0', 'a reload, while old workers have them');
    my @more = hold($one, 2);
    counted($two, $first, '6 0', 'and two on the new');
    release(@held);
    counted($two, $first, '2 0', 'the four end');
    $one->kill_worker($_) for $one->workers;
    counted($two, $first, '0 0', 'all workers are killed');
    release(@more);
    idle('then 0');
};

subtest 'under traffic on both, all end at 0' => sub {
    change($one, add => $second, max_conns => 0);
    becomes($two, $second, {}, 'two servers');
    my @loads = map { load_start(url => [ map { my $path = $_; $nodes[0]->url($path), $nodes[1]->url($path) }
        '/?delay=0.02', '/', '/?status=503', '/?delay=0.05' ], conns => 12, abort_share => 0.2) } 1, 2;
    sleep 4 * $INTERVAL;
    my @sums = map { load_stop($_) } @loads;
    ok(!$_->{failed}, 'no request fails') || diag(explain($_->{errors})) for @sums;
    idle('and when it stops');
};

$one->log_is_clean(allow => [ [ qr/exited on signal 9/, 2 ] ]);
$two->log_is_clean;
done_testing;
