# Silence, with several nodes: whoever hears of a server through Redis alone does not take Redis' absence for
# that of the server, and nobody removes what another hears of.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TTL = 1 * time_scale();

sub two {
    my ($redis, @settings) = @_;
    my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
    my @nodes = map {
        node(redis => $redis->url(port => $_->port), settings => { redis_timeout => ms(0.3 * time_scale()), heartbeat_ttl => ms($TTL), @settings })
    } @proxies;
    connected($_) or die "no sync\n" for @nodes;
    return (@proxies, @nodes);
}
sub state_of { my $server = server(@_); return $server ? $server->{state} : 'unknown' }

# Heartbeats to a node, for so many seconds, and what each of the nodes says of the server in that time.
sub beat {
    my ($seconds, $server, $to, @nodes) = @_;
    my ($until, @states) = (time + $seconds);
    while (time < $until) {
        change($to, refresh => $server);
        for my $i (0 .. $#nodes) { $states[$i]{ state_of($nodes[$i], $server) } = 1 }
        sleep $TTL / 8;
    }
    return map { join ' ', sort keys %$_ } @states;
}

# The same until something is so; true when it is.
sub beat_until {
    my ($condition, $server, $to) = @_;
    return wait_until(sub { change($to, refresh => $server); $condition->() }, 10 * time_scale(), $TTL / 8);
}

subtest 'heartbeats to one node are heartbeats to all' => sub {
    my $redis = RegistryTest->redis;
    my (undef, undef, $one, $two) = two($redis);
    my $addr = '127.0.0.9:1';
    change($one, add => $addr);
    becomes($two, $addr, {}, 'a server');
    is(join(',', beat(2.5 * $TTL, $addr, $one, $one, $two)), 'up,up', 'heard of on one, it is up on both');
    ok(abs(server($one, $addr)->{last_heartbeat} - server($two, $addr)->{last_heartbeat}) < $SLACK / 2, 'by the same heartbeat')
        or diag(server($one, $addr)->{last_heartbeat} - server($two, $addr)->{last_heartbeat});
    my $since = time;
    ok(wait_until(sub { state_of($one, $addr) eq 'expired' && state_of($two, $addr) eq 'expired' }), 'silent, it expires on both');
    my $took = time - $since;
    ok($took > $TTL * 0.8 && $took < $TTL + $SLACK, 'in its time') or diag($took);
    becomes($_, $addr, { enabled => 'false', disabled_reason => 'heartbeat_timeout' }, 'and is disabled, by each') for $one, $two;
    sleep 2 * $INTERVAL;
    my $meta = $redis->registry->{$addr}{meta};
    ok($meta->{enabled}, 'which is no change that others must make') or diag(explain($meta));
    change($two, refresh => $addr);
    becomes($_, $addr, { state => 'up', enabled => 'true' }, 'the next heartbeat brings it back on both') for $one, $two;
    is_deeply([ map { scalar $_->grep_log(qr/server \Q$addr\E (?:disabled|enabled|removed|added)/) } $one, $two ], [ 1, 1 ],
        'the log has no change but that it was added');
    $_->log_is_clean for $one, $two;
};

for my $data (0, 1) {
    subtest 'Redis is away for three TTLs, ' . ($data ? 'and has its data' : 'and has lost its data') => sub {
        my $redis = RegistryTest->redis($data ? (persist => 'aof') : ());
        my (undef, undef, $one, $two) = two($redis);
        my ($heard, $silent, $own) = map { "127.0.0.9:$_" } 1 .. 3;
        change($one, add => $_) for $heard, $silent;
        change($two, add => $own);
        agree([ $one, $two ], [ $heard, $silent, $own ], 'three servers');
        # What each has heard last came through the first node, but for its own.
        for (1 .. 2) { change($one, refresh => $_) for $heard, $silent; change($two, refresh => $own); sleep $TTL / 4 }

        $redis->stop('KILL');
        ok(disconnected($_), 'it goes') for $one, $two;
        my @states = beat(3.5 * $TTL, $heard, $one, $one, $two);
        is($states[0], 'up', 'a server that one hears of is up there');
        is($states[1], 'up', 'and on the other, which does not hear of it');
        is(state_of($one, $silent), 'expired', 'one that is silent has expired where it was heard of');
        is(state_of($two, $own), 'expired', 'on each node');

        # From now on nobody says anything.
        $redis->start;
        my ($back, $was_up, $gone) = (0, 0);
        wait_until(sub {
            my ($connected, $state) = (sync($two)->{connected}, state_of($two, $heard));
            $back ||= time if $connected;
            $was_up = time if $state eq 'up';
            return $gone = $state eq 'expired';
        }, $TTL + 10 * $SLACK);
        ok($back, 'it is back');
        ok($gone, 'silent from now on, it expires');
        cmp_ok($was_up - $back, '>', 0.7 * $TTL, 'when its TTL is over, which began in full') or diag($was_up - $back);
        ok(wait_until(sub { state_of($_, $heard) eq 'expired' }), 'on both') for $one, $two;
        change($one, refresh => $_) for $heard, $silent, $own;
        agree([ $one, $two ], [ map { "$_ 1 1000 true up" } $heard, $silent, $own ], 'and all come back with a heartbeat');
        $_->log_is_clean for $one, $two;
    };
}

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
