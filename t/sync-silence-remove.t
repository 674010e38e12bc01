# Removal for silence, with several nodes: nobody removes a server that another hears of, and one that was
# removed does not come back with whoever was away.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync-silence.pl";

our ($INTERVAL, $SLACK, $TTL);

subtest 'on_expire remove asks Redis first' => sub {
    my $redis = RegistryTest->redis;
    my ($front, $back, $one, $two) = two($redis, on_expire => 'remove');
    my $addr = '127.0.0.9:1';
    change($one, add => $addr);
    becomes($two, $addr, {}, 'a server');
    is(join(',', beat(2.5 * $TTL, $addr, $one, $one, $two)), 'up,up', 'heard of on one, nobody removes it');
    # The second hears of everything so late that the server is silent to it.
    $back->delay(0.25 * time_scale());
    my @states = beat(4 * $TTL, $addr, $one, $one);
    is("@states", 'up', 'late on the other, it is not removed there');
    $back->heal;
    ok(beat_until(sub { state_of($two, $addr) eq 'up' }, $addr, $one), 'nor is it when that is over');
    is(scalar($_->grep_log(qr/server \Q$addr\E removed/)), 0, 'no log says that it was') for $one, $two;

    ok(wait_until(sub { !server($one, $addr) && !server($two, $addr) }), 'silent everywhere, it is removed everywhere');
    ok(wait_until(sub { !%{ $redis->registry } }), 'and in Redis');
    change($two, add => $addr);
    becomes($one, $addr, { state => 'up' }, 'and may be registered again');
    $_->log_is_clean for $one, $two;
};

subtest 'while Redis is away nobody is removed whom another may hear of' => sub {
    my $redis = RegistryTest->redis(persist => 'aof');
    my ($front, $back, $one, $two) = two($redis, on_expire => 'remove');
    my $addr = '127.0.0.9:1';
    change($one, add => $addr);
    becomes($two, $addr, {}, 'a server');
    $back->refuse;
    ok(disconnected($two), 'one node is cut off');
    my @states = beat(3 * $TTL, $addr, $one, $one, $two);
    is($states[1], 'up', 'it goes on with a server that the other hears of');
    $back->heal;
    ok(beat_until(sub { sync($two)->{connected} }, $addr, $one), 'back');
    @states = beat(1.5 * $TTL, $addr, $one, $one, $two);
    is("@states", 'up up', 'it is there on both');
    $_->log_is_clean for $one, $two;
};

subtest 'remove_after is for those that nobody hears of' => sub {
    my $redis = RegistryTest->redis;
    my (undef, undef, $one, $two) = two($redis, remove_after => ms(2 * $TTL));
    change($one, add => $_) for '127.0.0.9:1', '127.0.0.9:2';
    becomes($two, '127.0.0.9:2', {}, 'two servers');
    is(join(',', beat(3 * $TTL, '127.0.0.9:1', $one, $one, $two)), 'up,up', 'one that is heard of on one node stays');
    ok(wait_until(sub { known($one) eq '127.0.0.9:1' && known($two) eq '127.0.0.9:1' }), 'the other is forgotten on both')
        or diag(known($one), ' - ', known($two));
    ok(wait_until(sub { join(' ', keys %{ $redis->registry }) eq '127.0.0.9:1' }), 'and in Redis');
    $_->log_is_clean for $one, $two;
};

subtest 'a node that was away for longer than removals are remembered' => sub {
    my $redis = RegistryTest->redis;
    my $ttl = 2 * time_scale();
    my (undef, $back, $one, $two) = two($redis, heartbeat_ttl => '1h', redis_tombstone_ttl => ms($ttl));
    change($one, add => "127.0.0.9:$_") for 1 .. 4;
    agree([ $one, $two ], [ map { "127.0.0.9:$_" } 1 .. 4 ], 'four servers');
    $back->refuse;
    ok(disconnected($two), 'one is cut off');
    change($one, remove => "127.0.0.9:$_") for 1, 2;
    change($two, refresh => '127.0.0.9:1');
    change($two, weight => '127.0.0.9:2', weight => 9);
    change($two, weight => '127.0.0.9:3', weight => 3);
    # Whatever keeps the memory of removals has forgotten these.
    ok(wait_until(sub { !@{ $redis->cli(ZRANGE => 'upstream:sync:graves', 0, -1) } }, $ttl + 5 * time_scale()), 'the removals are forgotten');
    is(known($two), '127.0.0.9:1 127.0.0.9:2 127.0.0.9:3 127.0.0.9:4', 'all are still there on the one');
    $back->heal;
    ok(connected($two, 10 * time_scale()), 'back again');
    agree([ $one, $two ], [ '127.0.0.9:3 3 1000 true up', '127.0.0.9:4' ], 'what was removed does not come back');
    redis_agrees($redis, [ $one, $two ], 'nor in Redis');
    sleep 3 * $INTERVAL;
    agree([ $one, $two ], [ '127.0.0.9:3', '127.0.0.9:4' ], 'and it stays so');
    change($two, add => '127.0.0.9:1');
    becomes($one, '127.0.0.9:1', {}, 'it may be added again');
    $_->log_is_clean for $one, $two;
};

done_testing;
