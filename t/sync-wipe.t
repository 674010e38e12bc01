# A wipe that is planned: it names the epoch that it ends, and the nodes forget what they knew. Redis that is
# merely empty, or whose epoch names none, is filled again.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $redis = RegistryTest->redis;

# Empties Redis in one step, as scripts/init_redis.sh does; named: with the name of the epoch that ends. Then
# registers what is given.
sub wipe {
    my ($named, @servers) = @_;
    my ($old) = $redis->cli(GET => 'upstream:sync:epoch') // '';
    my $new = sprintf '%08x%08x', rand 2**32, rand 2**32;
    my @words = ($new, $named ? split(' ', $old) : ());
    splice @words, 16 if @words > 16;
    $redis->cli(EVAL => <<'END', 0, "@words");
        for _, ns in ipairs(redis.call('SMEMBERS', 'upstream:sync:spaces')) do
            local between = ns == 'default' and '' or ns .. ':'
            redis.call('DEL', 'upstream:' .. between .. 'servers:zset', 'upstream:' .. between .. 'servers:meta', 'upstream:' .. between .. 'heartbeat')
        end
        redis.call('DEL', 'upstream:servers:zset', 'upstream:servers:meta', 'upstream:heartbeat')
        for _, key in ipairs(redis.call('KEYS', 'upstream:sync:*')) do redis.call('DEL', key) end
        redis.call('SET', 'upstream:sync:epoch', ARGV[1])
        local now = redis.call('TIME')
        redis.call('SET', 'upstream:sync:wiped', now[1] .. string.format('%03d', math.floor(now[2] / 1000)))
END
    $redis->register('default', $_) for @servers;
    return $new;
}
sub epoch { return (split ' ', $redis->cli(GET => 'upstream:sync:epoch') // '')[0] // 'none' }

my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
my @nodes = map { node(redis => $redis->url(port => $_->port), inside => 'server 127.0.0.7:7;', settings => { redis_timeout => ms(0.3 * time_scale()) }) } @proxies;
my ($one, $two) = @nodes;
my $STATIC = '127.0.0.7:7';
my @from;
sub fresh {
    connected($_) for @nodes;
    for my $addr (grep { $_ ne $STATIC } split ' ', known($one)) { call($one, remove => $addr) }
    agree(\@nodes, [$STATIC], 'only static servers');
    # What follows a removal at once is in sync-order.t.
    sleep 0.1;
    change($one, add => "127.0.0.9:$_") for 1 .. 3;
    change($two, add => '127.0.0.9:4', ns => 'fresh');
    agree(\@nodes, [ $STATIC, map { "127.0.0.9:$_" } 1 .. 3 ], 'and three more');
    becomes($one, '127.0.0.9:4', {}, 'and one in another namespace', ns => 'fresh');
    ok(pushed($_), 'in Redis') for @nodes;
    @from = map { $_->log_size } @nodes;
    return;
}

subtest 'the epoch is known from the first' => sub {
    ok(connected($_), 'connected') for @nodes;
    like($redis->cli(GET => 'upstream:sync:epoch'), qr/^[0-9a-f]{16}$/, 'its name');
    ok(!$redis->cli(EXISTS => 'upstream:sync:wiped'), 'nothing was wiped');
};

subtest 'a planned wipe is obeyed' => sub {
    fresh();
    my $new = wipe(1, '127.0.0.9:3', '127.0.0.9:10');
    agree(\@nodes, [ $STATIC, '127.0.0.9:10', '127.0.0.9:3' ], 'what was registered is forgotten, and what is there is taken');
    ok(wait_until(sub { known($_, 'fresh') eq '' }), 'in every namespace') for @nodes;
    sleep 4 * $INTERVAL;
    agree(\@nodes, [ $STATIC, '127.0.0.9:10', '127.0.0.9:3' ], 'and it stays so');
    is(join(' ', sort keys %{ $redis->registry }), '127.0.0.9:10 127.0.0.9:3', 'in Redis too');
    is(epoch(), $new, 'whose epoch is the new one');
    for my $i (0, 1) {
        log_says($nodes[$i], qr/^(?:away again )?emptied$/, 'the log says so, once', $from[$i]);
        my ($line) = $nodes[$i]->grep_log(qr/emptied on purpose/, $from[$i]);
        like($line || '', qr/: [34] servers forgotten/, 'and of how many');
    }
    change($two, add => '127.0.0.9:1');
    change($one, weight => '127.0.0.9:10', weight => 3);
    agree(\@nodes, [ $STATIC, '127.0.0.9:10 3 1000 true up', '127.0.0.9:3', '127.0.0.9:1' ], 'all goes on from there');
    redis_agrees_but_static('with Redis');
};

sub redis_agrees_but_static {
    my ($name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($in_redis, $on_nodes);
    my $ok = wait_until(sub {
        $in_redis = join ' ', sort keys %{ $redis->registry };
        $on_nodes = join ' ', grep { $_ ne $STATIC } split ' ', known($one);
        return $in_redis eq $on_nodes;
    });
    return ok($ok, $name) || diag("$in_redis\n$on_nodes");
}

subtest 'one after the other' => sub {
    fresh();
    for my $round (1 .. 20) {
        wipe(1, "127.0.0.9:$round");
        agree(\@nodes, [ $STATIC, "127.0.0.9:$round" ], "wipe $round") or last;
    }
    cmp_ok(scalar(split ' ', $redis->cli(GET => 'upstream:sync:epoch')), '<=', 16, 'the names of the epochs do not grow for ever');
};

subtest 'an epoch that names none is not obeyed' => sub {
    fresh();
    my $new = wipe(0, '127.0.0.9:10');
    agree(\@nodes, [ $STATIC, map { "127.0.0.9:$_" } 1, 2, 3, 10 ], 'Redis is filled again, and what is there is taken too', timeout => 10 * time_scale());
    agree(\@nodes, ['127.0.0.9:4'], 'in every namespace', ns => 'fresh');
    redis_agrees_but_static('in Redis as well');
    my $said = join ' ', map { redis_log($nodes[$_], $from[$_]) } 0, 1;
    unlike($said, qr/emptied/, 'the log does not say that it was meant');
    change($two, remove => '127.0.0.9:10');
    agree(\@nodes, [ $STATIC, map { "127.0.0.9:$_" } 1 .. 3 ], 'and all goes on');
};

subtest 'empty, with no epoch' => sub {
    fresh();
    my $old = epoch();
    $redis->cli('FLUSHALL');
    ok(wait_until(sub { epoch() eq $old }), 'the nodes write the epoch that they knew');
    agree(\@nodes, [ $STATIC, map { "127.0.0.9:$_" } 1 .. 3 ], 'and all servers');
    redis_agrees_but_static('in Redis as well');
};

for my $case ([ 'one wipe', 1 ], [ 'three wipes', 3 ]) {
    my ($what, $count) = @$case;
    subtest "a node that is away meanwhile: $what" => sub {
        fresh();
        $proxies[1]->refuse;
        ok(disconnected($two), 'one is away');
        change($two, add => '127.0.0.9:20');
        change($two, weight => '127.0.0.9:1', weight => 9);
        # The times are those of Redis, in milliseconds.
        sleep 0.05;
        wipe(1, '127.0.0.9:' . (9 + $_)) for 1 .. $count;
        sleep 0.05;
        change($two, add => '127.0.0.9:21', weight => 2);
        agree([$one], [ $STATIC, '127.0.0.9:' . (9 + $count) ], 'the other has obeyed');
        is(known($two), join(' ', $STATIC, '127.0.0.9:1', map { "127.0.0.9:$_" } 2, 20, 21, 3), 'itself it knows nothing of it');
        $proxies[1]->heal;
        agree(\@nodes, [ $STATIC, '127.0.0.9:' . (9 + $count), '127.0.0.9:21 2 1000 true up' ],
            'back, it forgets what is older, and tells what is not', timeout => 10 * time_scale());
        redis_agrees_but_static('in Redis as well');
        ok(wait_until(sub { known($two, 'fresh') eq '' }), 'the other namespace is gone');
        log_says($two, 'away again emptied', 'the log', $from[1]);
    };
}

subtest 'while it is used by nobody' => sub {
    fresh();
    $_->refuse for @proxies;
    ok(disconnected($_), 'both are away') for @nodes;
    wipe(1, '127.0.0.9:30');
    $proxies[0]->heal;
    ok(connected($one, 10 * time_scale()), 'the first comes back');
    $proxies[1]->heal;
    agree(\@nodes, [ $STATIC, '127.0.0.9:30' ], 'then the second, and both obey', timeout => 10 * time_scale());
    redis_agrees_but_static('in Redis as well');
};

subtest 'lost, filled by one node, while another is away' => sub {
    fresh();
    $proxies[1]->refuse;
    ok(disconnected($two), 'one is away');
    change($two, add => '127.0.0.9:40');
    $redis->stop('KILL');
    $redis->start;
    ok(wait_until(sub { keys %{ $redis->registry } == 3 }, 10 * time_scale()), 'the other fills Redis');
    change($one, remove => '127.0.0.9:2');
    ok(pushed($one), 'and goes on');
    $proxies[1]->heal;
    agree(\@nodes, [ $STATIC, map { "127.0.0.9:$_" } 1, 3, 40 ], 'back, it has lost nothing, and brings back nothing', timeout => 10 * time_scale());
    redis_agrees_but_static('in Redis as well');
};

$_->log_is_clean for @nodes;
done_testing;
