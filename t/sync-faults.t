# A network to Redis that delays, cuts, tears and swallows: requests and the API do not notice, the log says
# little, and in the end the nodes are equal.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TIMEOUT = 0.5 * time_scale();
my $backend = RegistryTest->backend(name => 'web');

# Two nodes, the first behind a proxy, and a server on both.
sub fresh {
    my ($redis) = @_;
    my $proxy = RegistryTest->proxy($redis->address);
    my @nodes = map { node(redis => $redis->url(port => $_->port), settings => { redis_timeout => ms($TIMEOUT) }) } $proxy, $redis;
    connected($_) or die "no sync\n" for @nodes;
    change($nodes[0], add => $backend, max_conns => 0, ns => $_) for qw(default other);
    becomes($nodes[1], $backend, {}, 'a server on both', ns => $_) for qw(default other);
    return ($proxy, @nodes);
}

# Changes on both nodes, and requests, for some seconds; then all is well. healed: what ends the fault.
sub through_it {
    my ($seconds, $healed, @nodes) = @_;
    my @loads = map { load_start(url => $_->url('/other/'), conns => 2, pause => 0.005) } @nodes;
    my ($until, $slowest, $count, %known) = (time + $seconds * time_scale(), 0, 0, $backend->address => 1);
    while (time < $until) {
        my $node = $nodes[ $count % 2 ];
        my $addr = '127.0.0.9:' . (1 + $count % 40);
        my $since = time;
        # What a node does not know yet it can't change; so it removes its own.
        if ($known{$addr}) { call($node, remove => $addr); delete $known{$addr} }
        else               { change($node, add => $addr, weight => 1 + $count % 9); $known{$addr} = 1 }
        change($node, weight => $backend, weight => 1 + $count++ % 9);
        my $took = time - $since;
        $slowest = $took if $took > $slowest;
        sleep 0.01;
    }
    my @sums = map { load_stop($_) } @loads;
    is_deeply([ map { keys %{ $_->{status} } } @sums ], [ 200, 200 ], 'all requests are served') or diag(explain(\@sums));
    cmp_ok(quantile(1, $slowest, map { $_->{slowest} } @sums), '<', $TIMEOUT, 'neither they nor the API wait for Redis');
    $healed->();
    ok(pushed($_, 10 * time_scale()), 'all that was changed is pushed') for @nodes;
    agree(\@nodes, [ sort keys %known ], 'and both nodes have the same');
    return;
}

subtest 'answers that come late' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    $proxy->delay(0.1 * time_scale());
    through_it(2, sub { }, @nodes);
    change($nodes[1], weight => $backend, weight => 77);
    becomes($nodes[0], $backend, { weight => 77 }, 'with a delay that is in time the node is in step, if later');
    ok(sync($nodes[0])->{connected}, 'and connected');
    log_says($_, 'used', 'of which there is nothing to say') for @nodes;
    redis_agrees($redis, \@nodes, 'Redis too');
    $_->log_is_clean for @nodes;
};

subtest 'answers that come too late' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    $proxy->delay(1.5 * $TIMEOUT);
    through_it(3, sub { ok(!sync($nodes[0])->{connected}, 'it counts as away'); $proxy->heal }, @nodes);
    redis_agrees($redis, \@nodes, 'Redis too');
    log_says($nodes[0], 'used away again', 'the log says that it went and came back');
    log_says($nodes[1], 'used', 'of the other nothing');
    $_->log_is_clean for @nodes;
};

subtest 'answers in single bytes' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    $proxy->pieces(1);
    through_it(1, sub { $proxy->heal }, @nodes);
    redis_agrees($redis, \@nodes, 'Redis too');
    log_says($nodes[0], qr/^used(?: away again)?$/, 'the log says no more than that') ;
    $_->log_is_clean for @nodes;
};

subtest 'connections that are reset, time and again' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    my $dropper = RegistryTest::Process::fork_child(sub {
        while (1) { $proxy->drop; sleep 0.05 + rand 0.2 }
    }, keep => [ $proxy->{control} ]);
    through_it(3, sub { RegistryTest::Process::stop_process($dropper, KILL => 5) }, @nodes);
    redis_agrees($redis, \@nodes, 'Redis too');
    my @words = split ' ', redis_log($nodes[0]);
    is(scalar(grep { !/^(?:used|away|again)$/ } @words), 0, 'the log says when it is away and when it is used again')
        or diag(join "\n", redis_lines($nodes[0]));
    cmp_ok(scalar @words, '<', 60, 'and nothing more');
    diag(scalar(@words) . ' lines about Redis');
    log_says($nodes[1], 'used', 'of the other nothing');
    $_->log_is_clean for @nodes;
};

for my $bytes (0, 1, 20, 300, 3000) {
    subtest "answers that end after $bytes bytes" => sub {
        my $redis = RegistryTest->redis;
        my ($proxy, @nodes) = fresh($redis);
        $proxy->truncate($bytes);
        through_it(1, sub { $proxy->heal }, @nodes);
        redis_agrees($redis, \@nodes, 'Redis too');
        my @words = split ' ', redis_log($nodes[0]);
        is(scalar(grep { !/^(?:used|away|again)$/ } @words), 0, 'the log') or diag(join "\n", redis_lines($nodes[0]));
        cmp_ok(scalar @words, '<', 40, 'says little') or diag("@words");
        $_->log_is_clean for @nodes;
    };
}

subtest 'a black hole' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    $proxy->blackhole;
    through_it(3, sub { ok(!sync($nodes[0])->{connected}, 'it counts as away'); $proxy->heal }, @nodes);
    redis_agrees($redis, \@nodes, 'Redis too');
    log_says($nodes[0], 'used away again', 'the log says that it went and came back');
    my $connections = $proxy->stats->{connections};

    # What was sent before arrives long after: a change that has been overtaken must not win.
    $proxy->blackhole;
    change($nodes[0], weight => $backend, weight => 50);
    sleep 0.1;
    change($nodes[1], weight => $backend, weight => 60);
    ok(disconnected($nodes[0]), 'once more');
    $proxy->heal(keep => 1);
    agree(\@nodes, [ $backend->address . ' 60 0 true up', grep { /^127\.0\.0\.9:/ } split ' ', known($nodes[1]) ],
        'and with what was under way the later change wins');
    $_->log_is_clean for @nodes;
};

subtest 'nobody who listens, for a while: few tries, then fewer' => sub {
    my $redis = RegistryTest->redis;
    my ($proxy, @nodes) = fresh($redis);
    my $before = $proxy->stats->{connections};
    $proxy->truncate(0);
    sleep 4 * time_scale();
    my $tries = $proxy->stats->{connections} - $before;
    cmp_ok($tries, '>=', 3, 'it tries again');
    cmp_ok($tries, '<', 60, 'and not all the time');
    diag("$tries connections in four seconds");
    $proxy->heal;
    my $since = time;
    ok(connected($nodes[0], 10 * time_scale()), 'it is used again');
    diag(sprintf 'used again %.1f s after it could be', time - $since);
    log_says($nodes[0], 'used away again', 'the log');
    $_->log_is_clean for @nodes;
};

done_testing;
