# One process of a node talks to Redis: killed, replaced or told to go, it is followed by another, no change is
# lost, and nobody waits for a Redis that is hung.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $backend = RegistryTest->backend(name => 'web');

# Which process it is, once there is just one.
sub elected {
    my ($node, $redis, $not) = @_;
    my @found;
    my $ok = wait_until(sub { @found = syncing($node, $redis); @found == 1 && $found[0] != ($not || 0) }, 10 * time_scale());
    return $ok ? $found[0] : die "talking to Redis: @found\n";
}
sub fresh {
    my (%opt) = @_;
    my $redis = RegistryTest->redis;
    my ($node, $other) = map { node(redis => $redis, %$_) } \%opt, {};
    connected($_) or die "no sync\n" for $node, $other;
    change($node, add => $backend, max_conns => 0, ns => $_) for qw(default other);
    becomes($other, $backend, {}, 'a server on both', ns => $_) for qw(default other);
    return ($redis, $node, $other);
}

subtest 'one worker talks to Redis' => sub {
    my ($redis, $node, $other) = fresh(workers => 4);
    my $pid = elected($node, $redis);
    ok(scalar(grep { $_ == $pid } $node->workers), 'it is a worker');
    my ($line) = redis_lines($node);
    like($line, qr/\] $pid#/, 'which says so');
    for my $round (1 .. 40) {
        # Each on a connection of its own, so that every worker gets some.
        change($node, add => "127.0.0.9:$round");
    }
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 1 .. 40 ], 'what any of them is told is pushed');
    is(elected($node, $redis), $pid, 'by that one');
    log_says($_, 'used', 'the log') for $node, $other;
    $_->log_is_clean for $node, $other;
};

subtest 'killed, it is followed by another, in the middle of changes' => sub {
    my ($redis, $node, $other) = fresh(workers => 4);
    my $killed = 0;
    my ($count, $pid) = (0);
    for my $round (1 .. 6) {
        $pid = elected($node, $redis, $pid);
        change($node, add => '127.0.0.9:' . ++$count, weight => 2) for 1 .. 10;
        kill 'KILL', $pid;
        $killed++;
        for (1 .. 10) {
            my $r = call($node, add => '127.0.0.9:' . ++$count);
            $r = call($node, add => "127.0.0.9:$count") unless $r->{status};    # it was answered by the one that was killed
            $r->{status} == 200 or fail("add: $r->{status}");
        }
    }
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 1 .. $count ], 'no change is lost', timeout => 10 * time_scale());
    redis_agrees($redis, [ $node, $other ], 'nor in Redis');
    ok(pushed($node), 'and nothing waits');
    change($other, weight => $backend, weight => 9);
    becomes($node, $backend, { weight => 9 }, 'changes of others come');
    is(sync($other)->{nodes}, 2, 'two nodes, and no more') or wait_until(sub { sync($other)->{nodes} == 2 });
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, $killed ] ]);
    $other->log_is_clean;
    like(redis_log($node), qr/^used(?: used){0,$killed}$/, 'the log says no more than who uses Redis') or diag(join "\n", redis_lines($node));
};

subtest 'killed together with all others' => sub {
    my ($redis, $node, $other) = fresh();
    change($node, add => "127.0.0.9:$_") for 1 .. 5;
    my @workers = $node->workers;
    kill 'KILL', @workers;
    my %old = map { $_ => 1 } @workers;
    ok(wait_until(sub { 2 == grep { !$old{$_} } $node->workers }), 'all are replaced');
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 1 .. 5 ], 'no change is lost');
    change($node, remove => '127.0.0.9:1');
    becomes($other, '127.0.0.9:1', undef, 'changes go on');
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, 2 ] ]);
    $other->log_is_clean;
};

subtest 'stopped in its tracks, it does not hold up the others' => sub {
    my ($redis, $node, $other) = fresh();
    my $pid = elected($node, $redis);
    # A connection to the other worker: a new one might go to the one that stands still.
    my $client;
    wait_until(sub {
        $client = $node->client;
        return $client->get('/upstream/health?ns=default')->{headers}{'x-worker'} != $pid;
    }) or die "no other worker answers\n";
    kill 'STOP', $pid;
    my $since = time;
    is($client->post('/upstream/add', body => 'ns=default&host=127.0.0.9&port=1')->{status}, 200, 'a change is taken');
    is($client->get('/other/')->{status}, 200, 'a request served');
    cmp_ok(time - $since, '<', $SLACK, 'at once');
    kill 'CONT', $pid;
    becomes($other, '127.0.0.9:1', {}, 'and pushed when it goes on');
    $_->log_is_clean for $node, $other;
};

subtest 'reloads in the middle of traffic and changes' => sub {
    my ($redis, $node, $other) = fresh();
    my $load = load_start(url => $node->url('/other/?delay=0.02'), conns => 4);
    my ($count, $pid) = (0, 0);
    for my $round (1 .. 4) {
        change($node, add => '127.0.0.9:' . ++$count) for 1 .. 10;
        $node->set_conf(http => $node->{http} =~ s/redis_interval \w+;/'redis_interval ' . (200 + $round) * time_scale() . 'ms;'/er) if $round == 3;
        ok($node->reload(wait => 'new'), "reload $round");
        change($node, add => '127.0.0.9:' . ++$count) for 1 .. 10;
        $pid = elected($node, $redis, $pid);
        ok(scalar(grep { $_ == $pid } $node->workers), 'a new worker talks to Redis');
        ok(wait_until(sub { !$node->old_workers }, 10 * time_scale()), 'the old ones go');
    }
    my $sum = load_stop($load);
    is_deeply([ keys %{ $sum->{status} } ], [200], 'all requests are served') or diag(explain($sum));
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 1 .. $count ], 'no change is lost');
    redis_agrees($redis, [ $node, $other ], 'nor in Redis');
    is(sync($other)->{nodes}, 2, 'two nodes, and no more') or wait_until(sub { sync($other)->{nodes} == 2 });
    ok(wait_until(sub { server($other, $backend, 'other')->{connections} == 0 }), 'no count is left');
    $_->log_is_clean for $node, $other;
};

subtest 'redis taken out of the configuration, and put back' => sub {
    my ($redis, $node, $other) = fresh();
    my $http = $node->{http};
    $node->set_conf(http => $http =~ s/ redis\w* [^;]+;//gr);
    ok($node->reload, 'without redis');
    ok(!syncing($node, $redis), 'it talks to Redis no more');
    ok(!exists status($node, 'default')->{sync}, 'and status does not speak of it');
    change($node, add => '127.0.0.9:1');
    change($other, add => '127.0.0.9:2');
    change($other, remove => $backend);
    sleep 2 * $INTERVAL;
    is(known($other), '127.0.0.9:2', 'what it is told is not told to others');
    $node->set_conf(http => $http);
    ok($node->reload, 'with redis');
    ok(connected($node), 'it is used again');
    ok(same([ $node, $other ], 'default', expected => sub { grep { /^127\.0\.0\.9:2 / } @{ $_[0] } }), 'and both are equal');
    $_->log_is_clean for $node, $other;
};

subtest 'another Redis after a reload' => sub {
    my ($redis, $node, $other) = fresh();
    my $new = RegistryTest->redis;
    my ($from, $to) = map { $_->port } $redis, $new;
    for my $each ($node, $other) {
        $each->set_conf(http => $each->{http} =~ s/:$from\b/:$to/r);
        ok($each->reload, 'another Redis');
    }
    agree([ $node, $other ], [ $backend->address ], 'nobody loses a server');
    redis_agrees($new, [ $node, $other ], 'and the new one is filled');
    change($node, add => '127.0.0.9:1');
    becomes($other, '127.0.0.9:1', {}, 'changes go on there');
    ok(!$redis->cli(HEXISTS => 'upstream:servers:meta', '127.0.0.9:1'), 'and not to the old one');
    $_->log_is_clean for $node, $other;
};

for my $how (qw(quit reload term)) {
    subtest "a Redis that is hung does not hold up a $how" => sub {
        my ($redis, $node, $other) = fresh(settings => { redis_timeout => "30s" });
        my $old = elected($node, $redis);
        $redis->pause;
        # So that it waits for an answer that does not come.
        change($node, add => '127.0.0.9:1');
        sleep 2 * $INTERVAL;
        my $since = time;
        if ($how eq 'quit')      { ok($node->quit(timeout => 10), 'it quits') }
        elsif ($how eq 'term')   { ok($node->stop, 'it ends') }
        else {
            ok($node->reload(timeout => 10 * time_scale()), 'new workers come and the old go');
            ok(!alive($old), 'that which waited too');
        }
        my $took = time - $since;
        cmp_ok($took, '<', 2 * time_scale(), 'within two seconds');
        $redis->resume;
        if ($how eq 'reload') {
            becomes($other, '127.0.0.9:1', {}, 'and what was changed is pushed by the new', timeout => 10 * time_scale());
        }
        $_->log_is_clean for $node, $other;
    };
}

subtest 'a Redis that cannot be reached neither' => sub {
    my $redis = RegistryTest->redis;
    my $proxy = RegistryTest->proxy($redis->address);
    my $node = node(redis => $redis->url(port => $proxy->port), settings => { redis_timeout => "30s" });
    connected($node);
    $proxy->blackhole;
    $proxy->drop;
    sleep 2 * $INTERVAL;
    my $since = time;
    ok($node->reload(timeout => 10 * time_scale()), 'a reload while it connects');
    ok($node->quit(timeout => 10), 'and a quit');
    cmp_ok(time - $since, '<', 3 * time_scale(), 'take no time');
    $node->log_is_clean;
};

subtest 'a reload that changes the size of the zone, while Redis is away' => sub {
    my $redis = RegistryTest->redis(persist => 'aof');
    my ($node, $other) = my @nodes = map { node(redis => $redis) } 1, 2;
    connected($_) for @nodes;
    change($node, add => "127.0.0.9:$_") for 1 .. 4;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 4 ], 'four servers');
    $redis->stop('KILL');
    ok(disconnected($_), 'Redis goes') for @nodes;
    change($node, remove => '127.0.0.9:1');
    change($node, weight => '127.0.0.9:2', weight => 9);
    change($node, add => '127.0.0.9:5');
    $node->set_conf(http => $node->{http} =~ s/registry main 1m/registry main 2m/r);
    ok($node->reload, 'a larger zone');
    change($node, remove => '127.0.0.9:3');
    $redis->start;
    agree(\@nodes, [ '127.0.0.9:2 9 1000 true up', '127.0.0.9:4', '127.0.0.9:5' ], 'what was changed before it is pushed too', timeout => 10 * time_scale());
    redis_agrees($redis, \@nodes, 'Redis has it');
    sleep 3 * $INTERVAL;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 2, 4, 5 ], 'and it stays so');
    ok(wait_until(sub { sync($other)->{nodes} == 2 }), 'two nodes, and no more');
    $_->log_is_clean for @nodes;
};

subtest 'a binary upgrade' => sub {
    my ($redis, $node, $other) = fresh(daemon => 1);
    change($node, add => "127.0.0.9:$_") for 1 .. 3;
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 1 .. 3 ], 'servers on both');
    my $old = $node->pid;
    my $new = $node->upgrade;
    change($node, add => '127.0.0.9:' . (3 + $_)) for 1 .. 6;    # one side or the other
    change($other, remove => '127.0.0.9:1');
    agree([ $other ], [ $backend->address, map { "127.0.0.9:$_" } 2 .. 9 ], 'two masters: what either is told is known elsewhere');
    ok($node->winch_old && $node->finish_upgrade, 'the old one goes');
    agree([ $node, $other ], [ $backend->address, map { "127.0.0.9:$_" } 2 .. 9 ], 'the new one has all');
    change($node, weight => '127.0.0.9:9', weight => 9);
    becomes($other, '127.0.0.9:9', { weight => 9 }, 'and goes on');
    ok(wait_until(sub { sync($other)->{nodes} == 2 }), 'two nodes');
    $_->log_is_clean for $node, $other;
};

subtest 'a quit tells what was changed last' => sub {
    my ($redis, $node, $other) = fresh();
    for my $round (1 .. 5) {
        change($node, add => "127.0.0.9:$round");
        ok($node->quit, 'right after a change it quits');
        # What was not pushed is gone with the zone: the API had answered already.
        $node->start;
    }
    ok(same([ $node, $other ], 'default'), 'nodes are equal in the end');
    diag('known after quits right after a change: ' . known($other));
    ok(wait_until(sub { sync($other)->{nodes} == 2 }), 'two nodes');
    $_->log_is_clean for $node, $other;
};

subtest 'master_process off' => sub {
    my ($redis, $node, $other) = fresh(master => 0);
    is(elected($node, $redis), $node->pid, 'the single process talks to Redis');
    change($node, add => '127.0.0.9:1');
    becomes($other, '127.0.0.9:1', {}, 'it tells');
    change($other, weight => '127.0.0.9:1', weight => 4);
    becomes($node, '127.0.0.9:1', { weight => 4 }, 'and is told');
    $redis->pause;
    change($node, add => '127.0.0.9:2');
    my $since = time;
    ok($node->quit(timeout => 10), 'it quits while Redis is hung');
    cmp_ok(time - $since, '<', 2 * time_scale(), 'at once');
    $redis->resume;
    $_->log_is_clean for $node, $other;
};

subtest 'a state file: a restart while Redis is away' => sub {
    my $redis = RegistryTest->redis(persist => 'aof');
    my ($node, $other) = map { node(redis => $redis, settings => { $_ ? (state_file => 'main.json') : () }) } 1, 0;
    connected($_) for $node, $other;
    change($node, add => "127.0.0.9:$_") for 1 .. 5;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 1 .. 5 ], 'five servers');
    $redis->stop('KILL');
    ok(disconnected($_), 'Redis goes') for $node, $other;
    change($node, remove => '127.0.0.9:1');
    change($node, add => '127.0.0.9:6', weight => 6);
    change($node, weight => '127.0.0.9:2', weight => 22);
    disable($node, '127.0.0.9:3');
    change($node, remove => '127.0.0.9:4');
    change($node, add => '127.0.0.9:4', weight => 4);
    change($other, refresh => "127.0.0.9:$_") for 1, 4;
    my @known = ('127.0.0.9:2 22 1000 true up', '127.0.0.9:3 1 1000 false down', '127.0.0.9:4 4 1000 true up', '127.0.0.9:5', '127.0.0.9:6 6 1000 true up');
    ok($node->quit, 'it quits');
    ok($node->start, 'and starts');
    agree([$node], \@known, 'with what it had');
    cmp_ok(sync($node)->{pending}, '>=', 4, 'and what waits for Redis');
    $redis->start;
    agree([ $node, $other ], \@known, 'Redis is back: what was changed is so everywhere, what was removed stays so', timeout => 10 * time_scale());
    redis_agrees($redis, [ $node, $other ], 'in Redis too');
    sleep 3 * $INTERVAL;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 2 .. 6 ], 'and it stays so');

    # Killed outright, with what the file had by then.
    $redis->stop('KILL');
    ok(disconnected($_), 'once more') for $node, $other;
    change($node, remove => '127.0.0.9:5');
    ok(wait_until(sub { slurp($node->dir . '/main.json') !~ /127\.0\.0\.9:5"[^\n]*"enabled"/ }), 'the file knows of a removal');
    sleep 0.3 * time_scale();
    $node->kill_all;
    $node->start;
    is(known($node), join(' ', map { "127.0.0.9:$_" } 2, 3, 4, 6), 'killed and started it does too');
    $redis->start;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 2, 3, 4, 6 ], 'and everywhere it is gone', timeout => 10 * time_scale());
    $_->log_is_clean for $node, $other;
};

subtest 'a state file that is older than what Redis has' => sub {
    my $redis = RegistryTest->redis;
    my ($node, $other) = map { node(redis => $redis, settings => { $_ ? (state_file => 'main.json') : () }) } 1, 0;
    connected($_) for $node, $other;
    change($node, add => "127.0.0.9:$_") for 1 .. 4;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 1 .. 4 ], 'four servers');
    ok(wait_until(sub { slurp($node->dir . '/main.json') =~ /127\.0\.0\.9:4"/ }) && $node->quit, 'one node is gone');
    change($other, remove => '127.0.0.9:1');
    change($other, weight => '127.0.0.9:2', weight => 7);
    change($other, remove => '127.0.0.9:3');
    change($other, add => '127.0.0.9:3', weight => 3);
    change($other, add => '127.0.0.9:5');
    ok(pushed($other), 'while the other changes much');
    $node->start;
    agree([ $node, $other ], [ '127.0.0.9:2 7 1000 true up', '127.0.0.9:3 3 1000 true up', '127.0.0.9:4', '127.0.0.9:5' ],
        'started again it brings nothing back', timeout => 10 * time_scale());
    redis_agrees($redis, [ $node, $other ], 'in Redis neither');
    $_->log_is_clean for $node, $other;
};

subtest 'a state file that is older than removals are remembered' => sub {
    my $redis = RegistryTest->redis;
    my $ttl = 1.5 * time_scale();
    my ($node, $other) = map { node(redis => $redis, settings => { redis_tombstone_ttl => ms($ttl), $_ ? (state_file => 'main.json') : () }) } 1, 0;
    connected($_) for $node, $other;
    change($node, add => "127.0.0.9:$_") for 1 .. 4;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 1 .. 4 ], 'four servers');
    ok(wait_until(sub { slurp($node->dir . '/main.json') =~ /127\.0\.0\.9:4"/ }) && $node->quit, 'one node is gone');
    change($other, remove => "127.0.0.9:$_") for 1, 2;
    ok(pushed($other), 'the other removes two');
    ok(wait_until(sub { !@{ $redis->cli(ZRANGE => 'upstream:sync:graves', 0, -1) } }, $ttl + 5 * time_scale()), 'which is forgotten');
    $node->start;
    ok(connected($node), 'started again');
    sleep 4 * $INTERVAL;
    agree([ $node, $other ], [ map { "127.0.0.9:$_" } 3, 4 ], 'it brings neither back');
    redis_agrees($redis, [ $node, $other ], 'in Redis neither');
    $_->log_is_clean for $node, $other;
};

done_testing;
