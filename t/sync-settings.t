# What a server says when it registers holds on all nodes: failures, timeouts, how it grows, what checks ask
# it for. Two nginx and a Redis.

use strict;
use warnings;

use FindBin;
use JSON::PP qw(decode_json);
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $S = time_scale();
my $redis = RegistryTest->redis;
my @nodes = map {
    node(redis => $redis, settings => { state_file => 'main.json' }, server =>
        'location /turns/ { proxy_pass http://other/; proxy_next_upstream error timeout http_503; }')
} 1, 2;
my ($one, $two) = @nodes;
connected($_) or die "no sync\n" for @nodes;
my ($backend, $other) = map { RegistryTest->backend(name => $_) } qw(web other);

# The settings of a server as a node has them: those in its state file, which is written within a second.
my @NAMES = qw(max_fails fail_timeout_ms slow_start_ms connect_timeout_ms send_timeout_ms read_timeout_ms health_path);
sub settings {
    my ($node, $server) = @_;
    my $file = eval { decode_json(slurp($node->dir . '/main.json')) } or return;
    my ($line) = grep { $_->{addr} eq $server->address && $_->{namespace} eq 'default' } @{ $file->{servers} } or return;
    return join ' ', map { defined $line->{$_} ? "$_=$line->{$_}" : () } @NAMES;
}
sub has {
    my ($server, $expected, $name, @on) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    for my $i (@on ? @on : (0, 1)) {
        ok(wait_until(sub { (settings($nodes[$i], $server) // 'unknown') eq $expected }), "$name: node $i")
            || diag('has ', settings($nodes[$i], $server) // 'no such server');
    }
    return;
}
# The fields of its entry in servers:meta that are settings.
sub entry {
    my ($server) = @_;
    my $meta = $redis->registry('default')->{ $server->address }{meta} || {};
    return join ' ', map { s/_ms$//r } map { my $n = s/_ms$//r; defined $meta->{$n} ? "$n=$meta->{$n}" : () } @NAMES;
}

subtest 'a registration' => sub {
    change($one, add => $backend, max_fails => 3, fail_timeout => '2500ms', slow_start => '1m', connect_timeout => '5s',
        send_timeout => '500ms', read_timeout => '1h', health_path => '/live?x=1');
    has($backend, 'max_fails=3 fail_timeout_ms=2500 slow_start_ms=60000 connect_timeout_ms=5000 send_timeout_ms=500 read_timeout_ms=3600000 health_path=/live?x=1', 'all of it');
    is(entry($backend), 'max_fails=3 fail_timeout=2.5 slow_start=60 connect_timeout=5 send_timeout=0.5 read_timeout=3600 health_path=/live?x=1', 'Redis shows it, times in seconds');
    change($two, add => $backend, max_fails => 1, fail_timeout => '10s', slow_start => 0, connect_timeout => 0, health_path => '');
    has($backend, 'send_timeout_ms=500 read_timeout_ms=3600000', 'what the other node is told');
    is(entry($backend), 'send_timeout=0.5 read_timeout=3600', 'and Redis what is not the default');
    change($_, add => $backend) for @nodes;
    change($_, refresh => $backend) for @nodes;
    sleep 2 * $INTERVAL;
    has($backend, 'send_timeout_ms=500 read_timeout_ms=3600000', 'heartbeats that say nothing');
    redis_agrees($redis, \@nodes, 'the rest is as it was');
};

subtest 'it holds for requests' => sub {
    change($one, add => $backend, ns => 'other', read_timeout => ms(0.3), max_fails => 2, fail_timeout => '1h');
    change($one, add => $other, ns => 'other', max_fails => 0);
    becomes($two, $_, {}, 'both are known', ns => 'other') for $backend, $other;
    ok(wait_until(sub { answers($two, 4, '/turns/') eq 'other web' }), 'and answer');
    $backend->set(hang => 1);
    my $before = $backend->stats->{requests};
    my @times = map { $two->get('/turns/')->{time} } 1 .. 6;
    is($backend->stats->{requests}, $before + 2, 'on the other node two failures take it out');
    is(server($two, $backend, 'other')->{state}, 'unhealthy', 'it rests');
    my @slow = grep { $_ >= 0.29 * $S } @times;
    is(@slow, 2, 'each after its own read_timeout') or diag("@times");
    cmp_ok($_, '<', 0.3 * $S + $SLACK, 'not that of the location') for @slow;
    $backend->clear;
};

subtest 'of two that were told apart the later counts' => sub {
    $redis->stop;
    ok(disconnected($_), 'Redis is away') for @nodes;
    change($one, add => $backend, max_fails => 5);
    sleep 0.2 * $S;
    change($two, add => $backend, max_fails => 6);
    sleep 0.2 * $S;
    change($one, add => $backend);
    has($backend, 'max_fails=5 send_timeout_ms=500 read_timeout_ms=3600000', 'each has its own', 0);
    has($backend, 'max_fails=6 send_timeout_ms=500 read_timeout_ms=3600000', 'each has its own', 1);
    $redis->start;
    has($backend, 'max_fails=6 send_timeout_ms=500 read_timeout_ms=3600000', 'it is back, empty');
    ok(wait_until(sub { entry($backend) eq 'max_fails=6 send_timeout=0.5 read_timeout=3600' }), 'and has it') or diag(entry($backend));
};

subtest 'a node that begins' => sub {
    my $three = node(redis => $redis, settings => { state_file => 'main.json' });
    push @nodes, $three;
    has($backend, 'max_fails=6 send_timeout_ms=500 read_timeout_ms=3600000', 'knows it', 2);
};

subtest 'redis-cli' => sub {
    my $meta = sub { $redis->cli(HSET => $redis->key('default', 'servers:meta'), $backend->address, $_[0]) };
    $meta->('{"weight":2,"max_fails":4,"fail_timeout":0.5,"connect_timeout":3,"health_path":"/up"}');
    has($backend, 'max_fails=4 fail_timeout_ms=500 connect_timeout_ms=3000 health_path=/up', 'an entry sets them');
    my @from = map { $_->log_size } @nodes;
    $meta->('{"weight":2,"max_fails":4,"fail_timeout":"5s"}');
    ok(wait_until(sub { grep { $nodes[$_]->grep_log(qr/is skipped: "fail_timeout" must be a number of seconds from 0 to 86400$/, $from[$_]) } 0, 1 }), 'one with a bad value is named in the log');
    $meta->('{"weight":2}');
    has($backend, '', 'left out, they are the default');
};

$_->log_is_clean for @nodes;
done_testing;
