# Redis that is not there: at the start, killed, stopped in its tracks. Requests and the API go on as if
# nothing had happened, and what was changed meanwhile is known to all when it is back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TIMEOUT = 1 * time_scale();
my $backend = RegistryTest->backend(name => 'web');

sub two_nodes {
    my ($redis, %settings) = @_;
    return map { node(redis => $redis, settings => { redis_timeout => ms($TIMEOUT), %settings }) } 1, 2;
}

subtest 'not there at the start' => sub {
    my $redis = RegistryTest->redis(start => 0);
    my @nodes = two_nodes($redis);
    change($nodes[0], add => $backend, ns => $_) for qw(default other);
    change($nodes[1], add => '127.0.0.9:2', weight => 2);
    is(answers($nodes[0], 2, '/other/'), 'web', 'requests are served');
    for my $node (@nodes) {
        ok($node->wait_log(qr/can't be used/), 'the log says that it is away');
        my $sync = sync($node);
        ok(!$sync->{connected}, 'so does status');
        is($sync->{nodes}, 1, 'it knows itself');
        cmp_ok($sync->{pending}, '>=', 1, 'with a change that waits');
        is(text($sync->{last_sync}), 'null', 'and never having been in step');
    }
    sleep 3 * $INTERVAL;
    log_says($_, 'away', 'once') for @nodes;
    like((redis_lines($_))[0], qr/\[error\] .*Redis redis:\/\/127\.0\.0\.1:\d+\/0 can't be used: .*refused/i, 'and why') for @nodes;
    $redis->start;
    agree(\@nodes, [ $backend->address, '127.0.0.9:2 2 1000 true up' ], 'it comes, and both have all');
    redis_agrees($redis, \@nodes, 'and Redis too');
    ok(pushed($_), 'nothing waits any more') for @nodes;
    log_says($_, qr/^away (?:used|again)$/, 'the log says that it is there') for @nodes;
    $_->log_is_clean for @nodes;
};

subtest 'killed, and started again without its data' => sub {
    my $redis = RegistryTest->redis;
    my ($front, $back) = map { RegistryTest->proxy($redis->address) } 1, 2;
    my @nodes = map { node(redis => $redis->url(port => $_->port)) } $front, $back;
    connected($_) for @nodes;
    change($nodes[0], add => "127.0.0.9:$_", weight => $_) for 1 .. 5;
    change($nodes[0], add => '127.0.0.9:1', ns => 'extra');
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 5 ], 'five servers');
    becomes($nodes[1], '127.0.0.9:1', {}, 'and one in another namespace', ns => 'extra');
    disable($nodes[1], '127.0.0.9:2');
    becomes($nodes[0], '127.0.0.9:2', { state => 'down' }, 'one disabled');
    change($nodes[0], remove => '127.0.0.9:5');
    becomes($nodes[1], '127.0.0.9:5', undef, 'one removed');

    $redis->stop('KILL');
    ok(disconnected($_), 'it is away') for @nodes;
    change($nodes[0], add => '127.0.0.9:10');
    change($nodes[1], add => '127.0.0.9:11');
    change($nodes[1], remove => '127.0.0.9:1');
    change($nodes[0], weight => '127.0.0.9:3', weight => 33);
    $back->refuse;
    $redis->start;
    # One node fills it, and then the other comes.
    my $five = [ '127.0.0.9:10', '127.0.0.9:2 2 1000 false down', '127.0.0.9:3 33 1000 true up', '127.0.0.9:4' ];
    ok(wait_until(sub { keys %{ $redis->registry } == 5 }, 10 * time_scale()), 'one node writes what it knows');
    is(known($nodes[1]), '127.0.0.9:11 127.0.0.9:2 127.0.0.9:3 127.0.0.9:4', 'the other still has its own');
    sleep 2 * $INTERVAL;
    $back->heal;
    agree(\@nodes, [ @$five, '127.0.0.9:11' ], 'then both have all, changed as they were, and what was removed is not', timeout => 10 * time_scale());
    agree(\@nodes, ['127.0.0.9:1'], 'in every namespace', ns => 'extra');
    redis_agrees($redis, \@nodes, 'Redis has it too');
    redis_agrees($redis, \@nodes, 'there as well', ns => 'extra');
    log_says($nodes[0], qr/^used away (?:again lost|lost again)$/, 'the log of the one that filled it');
    log_says($nodes[1], qr/^used away again(?: lost)?$/, 'and of the other');

    # All at once, a few times.
    for my $round (1 .. 3) {
        my $from = $nodes[0]->log_size;
        $redis->stop('KILL');
        $redis->start;
        change($nodes[ $round % 2 ], weight => '127.0.0.9:4', weight => 40 + $round);
        agree(\@nodes, [ @$five[ 0 .. 2 ], "127.0.0.9:4 4$round 1000 true up", '127.0.0.9:11' ], "away for a moment, $round", timeout => 10 * time_scale());
        redis_agrees($redis, \@nodes, 'Redis too', timeout => 10 * time_scale());
    }
    change($nodes[1], remove => '127.0.0.9:4');
    becomes($nodes[0], '127.0.0.9:4', undef, 'changes go on');
    $_->log_is_clean for @nodes;
};

subtest 'emptied while it runs' => sub {
    my $redis = RegistryTest->redis;
    my @nodes = two_nodes($redis);
    connected($_) for @nodes;
    change($nodes[0], add => "127.0.0.9:$_") for 1 .. 3;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 3 ], 'three servers');
    $redis->cli('FLUSHALL');
    ok(wait_until(sub { keys %{ $redis->registry } == 3 }), 'FLUSHALL: they are written again');
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 3 ], 'and nobody has lost any');
    sleep 2 * $INTERVAL;
    my $said = join ' ', map { redis_log($_) } @nodes;
    like($said, qr/^used(?: lost)? used(?: lost)?$/, 'the log says so') && like($said, qr/lost/, 'at least once');
    change($nodes[1], remove => '127.0.0.9:3');
    becomes($nodes[0], '127.0.0.9:3', undef, 'changes go on');
    redis_agrees($redis, \@nodes, 'with Redis');
    $_->log_is_clean for @nodes;
};

for my $persist (qw(aof rdb)) {
    subtest "killed, and started again with its data ($persist)" => sub {
        my $redis = RegistryTest->redis(persist => $persist);
        my @nodes = two_nodes($redis);
        connected($_) for @nodes;
        change($nodes[0], add => "127.0.0.9:$_") for 1 .. 4;
        agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 4 ], 'four servers');
        if ($persist eq 'rdb') {
            ok(pushed($nodes[0]), 'which are saved');
            $redis->cli('SAVE');
        }
        # Of this an rdb knows nothing.
        change($nodes[0], add => '127.0.0.9:5');
        change($nodes[0], remove => '127.0.0.9:4');
        change($nodes[0], weight => '127.0.0.9:3', weight => 3);
        agree(\@nodes, [ '127.0.0.9:1', '127.0.0.9:2', '127.0.0.9:3 3 1000 true up', '127.0.0.9:5' ], 'and some changes');
        $redis->stop('KILL');
        ok(disconnected($_), 'it is away') for @nodes;
        change($nodes[0], add => '127.0.0.9:6');
        change($nodes[1], remove => '127.0.0.9:1');
        disable($nodes[1], '127.0.0.9:2');
        $redis->start;
        agree(\@nodes, [ '127.0.0.9:2 1 1000 false down', '127.0.0.9:3 3 1000 true up', '127.0.0.9:5', '127.0.0.9:6' ],
            'what was changed before and meanwhile is so', timeout => 10 * time_scale());
        redis_agrees($redis, \@nodes, 'in Redis too');
        sleep 2 * $INTERVAL;
        agree(\@nodes, [ map { "127.0.0.9:$_" } 2, 3, 5, 6 ], 'and stays so');
        log_says($_, $persist eq 'aof' ? 'used away again' : 'used away again lost', 'the log') for @nodes;
        $_->log_is_clean for @nodes;
    };
}

subtest 'stopped in its tracks' => sub {
    my $redis = RegistryTest->redis;
    my @nodes = two_nodes($redis);
    connected($_) for @nodes;
    change($nodes[0], add => $backend, max_conns => 0, ns => $_) for qw(default other);
    agree(\@nodes, [ $backend->address ], 'a server', ns => $_) for qw(default other);
    my $calm = parallel(4, 400, [ map { $_->url('/other/') } @nodes ]);
    ok($redis->pause, 'SIGSTOP');
    my $since = time;
    my @loads = map { load_start(url => $_->url('/other/'), conns => 2, pause => 0.002) } @nodes;
    my ($slowest, $count) = (0, 0);
    while (time < $since + 3 * $TIMEOUT) {
        for my $node (@nodes) {
            my $begun = time;
            $count++;
            change($node, weight => $backend, weight => $count);
            change($node, refresh => $backend);
            change($node, add => '127.0.0.9:' . ($count % 50 + 1), weight => 2);
            status($node, 'default');
            my $took = (time - $begun) / 4;
            $slowest = $took if $took > $slowest;
        }
        sleep 0.01;
    }
    my @sums = map { load_stop($_) } @loads;
    for my $sum (@sums) {
        is_deeply([ keys %{ $sum->{status} } ], [200], 'all requests are served') or diag(explain($sum));
        ok(!$sum->{failed}, 'none fails');
        cmp_ok($sum->{slowest}, '<', $TIMEOUT / 2, 'none takes as long as Redis may');
    }
    cmp_ok($slowest, '<', $TIMEOUT / 2, "nor any of $count changes");
    diag(sprintf 'slowest: %.0f ms of the requests (%.0f before), %.0f ms of the API', 1000 * quantile(1, map { $_->{slowest} } @sums),
        1000 * $calm->{slowest}, 1000 * $slowest);
    ok(!sync($_)->{connected}, 'it counts as away') for @nodes;
    cmp_ok(sync($_)->{pending}, '<=', 52, 'no more waits than there are servers') for @nodes;
    log_says($_, 'used away', 'which the log says once') for @nodes;
    like((redis_lines($_))[1], qr/can't be used: .*(?:time|timed)/i, 'and why') for @nodes;
    $redis->resume;
    ok(pushed($_, 10 * time_scale()), 'SIGCONT: it is used again') for @nodes;
    ok(same(\@nodes, 'default', expected => sub { @{ $_[0] } == 1 + ($count < 50 ? $count : 50) }), 'and both are equal');
    redis_agrees($redis, \@nodes, 'with Redis');
    log_says($_, 'used away again', 'the log says it') for @nodes;
    $_->log_is_clean for @nodes;
};

done_testing;
