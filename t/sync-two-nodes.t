# Two nodes and a Redis are one registry: what changes on one is soon so on the other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $redis = RegistryTest->redis;
my $proxy = RegistryTest->proxy($redis->address);
my ($one, $two) = (node(redis => $redis, settings => { redis_node => 'first' }), node(redis => $redis->url(port => $proxy->port)));
my @nodes = ($one, $two);

subtest 'both say what they share' => sub {
    for my $node (@nodes) {
        ok(connected($node), 'connected');
        ok(wait_until(sub { sync($node)->{nodes} == 2 }), 'two nodes');
        my $sync = sync($node);
        is_deeply([ sort keys %$sync ], [qw(connected lag_ms last_sync node nodes pending)], 'the whole of it');
        ok(abs($sync->{last_sync} - time) < $INTERVAL + $SLACK, 'the last time was just now') or diag("$sync->{last_sync}");
        is($sync->{pending}, 0, 'nothing is pending');
        ok($sync->{lag_ms} >= 0 && $sync->{lag_ms} < 1000 * ($INTERVAL + $SLACK), 'nor late') or diag($sync->{lag_ms});
    }
    is(sync($one)->{node}, 'first', 'a name that was given');
    ok(length sync($two)->{node} && sync($two)->{node} ne 'first', 'and one that was not');
    log_says($_, 'used', 'the log says it once') for @nodes;
};

subtest 'every change on one is made on the other' => sub {
    for my $case ([ $one, $two, '127.0.0.9:1' ], [ $two, $one, '127.0.0.9:2' ]) {
        my ($here, $there, $addr) = @$case;
        my $from = $there->log_size;
        change($here, add => $addr, weight => 3, max_conns => 7);
        becomes($there, $addr, { weight => 3, max_conns => 7, enabled => 'true', state => 'up', host => '127.0.0.9', disabled_at => undef }, 'add');
        my $created = server($here, $addr)->{created_at};
        ok(abs(server($there, $addr)->{created_at} - $created) < 0.01, 'at the same time');
        change($here, weight => $addr, weight => 5);
        becomes($there, $addr, { weight => 5 }, 'weight');
        disable($here, $addr);
        becomes($there, $addr, { enabled => 'false', state => 'down' }, 'disable');
        my ($mine, $its) = map { server($_, $addr) } $here, $there;
        is(text($its->{disabled_reason}), text($mine->{disabled_reason}), 'with the reason');
        ok($its->{disabled_at} && abs($its->{disabled_at} - $mine->{disabled_at}) < 0.01, 'and the time');
        enable($here, $addr);
        becomes($there, $addr, { enabled => 'true', state => 'up', disabled_at => undef, disabled_reason => undef }, 'enable');
        change($here, drain => $addr);
        becomes($there, $addr, { state => 'draining' }, 'drain');
        enable($here, $addr);
        becomes($there, $addr, { state => 'up' }, 'and its end');
        change($here, weight => $addr, weight => 0);
        becomes($there, $addr, { weight => 0 }, 'a weight of 0');
        change($here, add => $addr, weight => 2);
        becomes($there, $addr, { weight => 2, max_conns => 7 }, 'an add of a known server');
        my $before = server($there, $addr)->{last_heartbeat};
        # Those that follow each other closely are one.
        sleep 0.15;
        change($here, refresh => $addr);
        ok(wait_until(sub { server($there, $addr)->{last_heartbeat} > $before }), 'refresh');
        change($here, add => $addr, ns => 'other', weight => 9);
        becomes($there, $addr, { weight => 9 }, 'in another namespace', ns => 'other');
        is(server($there, $addr)->{weight}, 2, 'which is another server');
        change($here, remove => $addr);
        becomes($there, $addr, undef, 'remove');
        change($here, remove => $addr, ns => 'other');
        becomes($there, $addr, undef, 'in the other namespace too', ns => 'other');
        my @lines = map { /server \Q$addr\E (\w+) in namespace "default"/ } $there->error_log($from) =~ /(.*)\n/g;
        is("@lines", 'added disabled enabled draining enabled removed', 'the log has each, as if it had been made there');
        agree(\@nodes, [], 'and both are equal');
    }
};

subtest 'a server added on one serves requests to the other' => sub {
    my $backend = RegistryTest->backend(name => 'web');
    change($one, add => $backend);
    ok(wait_until(sub { answers($two, 1) eq 'web' }), 'soon');
    change($two, remove => $backend);
    ok(wait_until(sub { answers($one, 1) eq '502' }), 'and removed on the other it does not any more');
};

subtest 'within 100 ms, by half' => sub {
    my ($to, $at) = ($one->client, $two->client);
    change($one, add => '127.0.0.9:1');
    becomes($two, '127.0.0.9:1', {}, 'a server');
    my @took;
    for my $weight (1 .. 100) {
        my $since = time;
        $to->post('/upstream/weight', body => "ns=default&host=127.0.0.9&port=1&weight=1$weight");
        my $seen = wait_until(sub {
            $at->get('/upstream/status?ns=default')->{json}{data}[0]{weight} == "1$weight" && time;
        }, 5, 0.001) or last;
        push @took, 1000 * ($seen - $since);
        # Not in step with anything that comes at intervals.
        sleep 0.02 * rand;
    }
    is(scalar @took, 100, 'a hundred changes arrive');
    my $median = quantile(0.5, @took);
    diag(sprintf 'from a change on one to status on the other: median %.1f ms, p99 %.1f ms, most %.1f ms',
        $median, quantile(0.99, @took), quantile(1, @took));
    cmp_ok($median, '<', 100 * time_scale(), 'the median');
    change($one, remove => '127.0.0.9:1');
};

subtest 'within redis_interval when the message is lost' => sub {
    change($one, add => '127.0.0.9:1');
    becomes($two, '127.0.0.9:1', {}, 'a server');
    $proxy->deaf;
    my @took;
    for my $weight (11 .. 15) {
        my $since = time;
        change($one, weight => '127.0.0.9:1', weight => $weight);
        becomes($two, '127.0.0.9:1', { weight => $weight }, 'a change of which one is not told');
        push @took, time - $since;
    }
    cmp_ok(quantile(0.5, @took), '<', 1.5 * $INTERVAL + 0.2 * $SLACK, 'arrives in that time')
        or diag("@took");
    $proxy->heal(keep => 1);
    for my $weight (21 .. 25) {
        my $since = time;
        $redis->cut_subscribers;
        change($weight % 2 ? $one : $two, weight => '127.0.0.9:1', weight => $weight);
        becomes($_, '127.0.0.9:1', { weight => $weight }, 'one made while nobody listens too') for @nodes;
        cmp_ok(time - $since, '<', $INTERVAL + $SLACK, 'in time');
    }
    $proxy->heal;
    change($one, remove => '127.0.0.9:1');
    agree(\@nodes, [], 'and it goes');
};

subtest 'one server changed on both at once' => sub {
    change($one, add => '127.0.0.9:1');
    becomes($two, '127.0.0.9:1', {}, 'a server');
    my @clients = map { $_->client } @nodes;
    my %failed;
    for my $round (1 .. 200) {
        for my $i (0, 1) {
            my $what = $round % 4 == 0 ? 'toggle?action=' . ($i ? 'enable' : 'disable') : "weight?weight=$round$i";
            my ($endpoint, $query) = split /\?/, $what;
            $clients[$i]->send(RegistryTest::Client::format_request(POST => "/upstream/$endpoint",
                body => "ns=default&host=127.0.0.9&port=1&$query"));
        }
        for my $client (@clients) {
            my $response = $client->response;
            $failed{ $response->{status} }++ unless $response->{status} == 200;
        }
    }
    is_deeply(\%failed, {}, 'two hundred times, and each is answered');
    ok(pushed($_), 'all is pushed') for @nodes;
    my $lines = same(\@nodes, 'default', expected => sub { @{ $_[0] } == 1 && $_[0][0] =~ / (?:199|200)[01] / });
    ok($lines, 'they end equal, with one of the last');
    redis_agrees($redis, \@nodes, 'Redis too');

    for my $round (1 .. 50) {
        my @how = (qw(remove add))[ $round % 2, !($round % 2) ];
        $clients[$_]->send(RegistryTest::Client::format_request(POST => "/upstream/$how[$_]", body => 'ns=default&host=127.0.0.9&port=2'))
            for 0, 1;
        $_->response for @clients;
    }
    ok(pushed($_), 'added on one and removed on the other at once, fifty times') for @nodes;
    ok(same(\@nodes, 'default'), 'they are equal again');
    redis_agrees($redis, \@nodes, 'Redis too');
    call($one, remove => "127.0.0.9:$_") for 1, 2;
    agree(\@nodes, [], 'and removed it stays so');
};

subtest 'namespaces come and go' => sub {
    for my $case ([ $one, $two ], [ $two, $one ]) {
        my ($here, $there) = @$case;
        is($there->get('/upstream/status?ns=extra')->{status}, 404, 'one that nobody knows');
        change($here, add => '127.0.0.9:3', ns => 'extra');
        becomes($there, '127.0.0.9:3', { namespace => 'extra' }, 'comes with its first server', ns => 'extra');
        ok($redis->cli(SISMEMBER => 'upstream:sync:spaces', 'extra'), 'Redis knows its name');
        is_deeply([ keys %{ $redis->registry('extra') } ], ['127.0.0.9:3'], 'and has its keys');
        change($there, remove => '127.0.0.9:3', ns => 'extra');
        ok(wait_until(sub { $here->get('/upstream/status?ns=extra')->{status} == 404 }), 'and goes with its last');
        ok(wait_until(sub { !@{ $redis->cli(KEYS => 'upstream:extra:*') } }), 'so do its keys');
    }
    $redis->register('made-outside', '127.0.0.9:4');
    $redis->cli(SADD => 'upstream:sync:spaces', 'made-outside');
    becomes($_, '127.0.0.9:4', {}, 'one that another program makes, and names', ns => 'made-outside') for @nodes;
    change($one, remove => '127.0.0.9:4', ns => 'made-outside');
    becomes($two, '127.0.0.9:4', undef, 'goes as well', ns => 'made-outside');
};

subtest 'a node that comes later has all there is' => sub {
    change($one, add => "127.0.0.9:$_", weight => $_) for 1 .. 300;
    disable($two, '127.0.0.9:7') if becomes($two, '127.0.0.9:7', {}, 'three hundred servers');
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 300 ], 'are on both');
    my $c = node(redis => $redis);
    ok(same([ @nodes, $c ], 'default', expected => sub { @{ $_[0] } == 300 }), 'and on a third');
    is(server($c, '127.0.0.9:7')->{state}, 'down', 'as they are');
    ok(wait_until(sub { 3 == grep { sync($_)->{nodes} == 3 } @nodes, $c }), 'three nodes');
    change($c, weight => '127.0.0.9:9', weight => 99);
    becomes($_, '127.0.0.9:9', { weight => 99 }, 'its changes count') for @nodes;
    ok($c->quit, 'it leaves');
    ok(wait_until(sub { 2 == grep { sync($_)->{nodes} == 2 } @nodes }, 4 * $INTERVAL + $SLACK), 'two nodes');
    $c->log_is_clean;
    ok(same(\@nodes, 'default', expected => sub { @{ $_[0] } == 300 }), 'no server leaves with it');
};

log_says($one, 'used', 'all that while no line about Redis');
log_says($two, qr/^used(?: away again)*$/, 'but for connections that were cut');
$_->log_is_clean for @nodes;

subtest 'a node that has no redis' => sub {
    my $alone = node(redis => undef, settings => { redis_interval => undef, redis_timeout => undef });
    change($alone, add => '127.0.0.9:1');
    ok(!exists status($alone, 'default')->{sync}, 'says nothing of it');
    is(server($alone, '127.0.0.9:1')->{local_connections} // 0, 0, 'and counts alone');
    $alone->log_is_clean;
};

done_testing;
