# The three keys of a namespace in Redis: what is in them, and what other programs write there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use JSON::PP ();
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
# What is written to the keys alone is seen at the next look.
my $SOON = $INTERVAL + $SLACK;
my $redis = RegistryTest->redis;
my $one = node(redis => $redis, settings => { allow_servers => '127.0.0.0/8 10.0.0.0/8 2001:db8::/32' });
my $two = node(redis => $redis);
my @nodes = ($one, $two);
my $backend = RegistryTest->backend(name => 'web');
my $addr = '127.0.0.9:80';
connected($_) for @nodes;

sub seen_within {
    my ($since, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return cmp_ok(time - $since, '<', $SOON, $name);
}
# What Redis has of one server, once a condition holds.
sub in_redis {
    my ($ns, $server, $condition) = @_;
    my $entry;
    wait_until(sub { $entry = $redis->registry($ns)->{$server}; $condition->($entry || {}) });
    return $entry;
}

for my $ns (qw(default other)) {
    subtest "what a node writes, in the namespace $ns" => sub {
        my $before = time;
        change($one, add => $addr, ns => $ns, weight => 3, max_conns => 50);
        my $entry = in_redis($ns, $addr, sub { $_[0]{meta} && defined $_[0]{heartbeat} && defined $_[0]{score} });
        my $between = $ns eq 'default' ? '' : "$ns:";
        my %types = map { $_ => $redis->cli(TYPE => "upstream:$between$_") } qw(servers:zset servers:meta heartbeat);
        is_deeply(\%types, { 'servers:zset' => 'zset', 'servers:meta' => 'hash', heartbeat => 'hash' }, 'the keys and their types');
        is($entry->{score}, 0, 'none in flight');
        my $meta = $entry->{meta};
        # Those of one that is disabled may be left out.
        is_deeply([ grep { !/^disabled_/ } sort keys %$meta ],
            [ sort qw(host port weight max_conns enabled created_at updated_at last_heartbeat) ], 'the fields');
        is_deeply([ @$meta{qw(host port weight max_conns disabled_at disabled_reason)} ], [ '127.0.0.9', 80, 3, 50, undef, undef ], 'their values');
        ok(JSON::PP::is_bool($meta->{enabled}) && $meta->{enabled}, 'enabled is true');
        like($redis->cli(HGET => "upstream:${between}servers:meta", $addr), qr/"port":\s*80\b.*/, 'numbers are numbers');
        for my $field (qw(created_at updated_at last_heartbeat)) {
            ok($meta->{$field} >= $before - 2 && $meta->{$field} <= time + 2, "$field is now") or diag($meta->{$field});
        }
        ok(abs($entry->{heartbeat} - $redis->now) < 3, 'the heartbeat is by the clock of Redis') or diag($entry->{heartbeat});
        like($entry->{heartbeat}, qr/^\d+(?:\.\d+)?$/, 'in seconds');

        change($one, toggle => $addr, ns => $ns, action => 'disable');
        $meta = in_redis($ns, $addr, sub { !$_[0]{meta}{enabled} })->{meta};
        ok(JSON::PP::is_bool($meta->{enabled}) && !$meta->{enabled}, 'disabled: enabled is false');
        ok($meta->{disabled_at} && abs($meta->{disabled_at} - time) < 3, 'and disabled_at the time');
        is(text($meta->{disabled_reason}), text(server($one, $addr, $ns)->{disabled_reason}), 'the reason is that of status');
        becomes($two, $addr, { enabled => 'false' }, 'which the other knows', ns => $ns);
        change($two, toggle => $addr, ns => $ns, action => 'enable');
        $meta = in_redis($ns, $addr, sub { $_[0]{meta}{enabled} })->{meta};
        is_deeply([ @$meta{qw(disabled_at disabled_reason)} ], [ undef, undef ], 'enabled on the other: neither is there');
        change($two, weight => $addr, ns => $ns, weight => 8);
        is(in_redis($ns, $addr, sub { $_[0]{meta}{weight} == 8 })->{meta}{weight}, 8, 'a weight');

        my $heartbeat = in_redis($ns, $addr, sub { 1 })->{heartbeat};
        wait_until(sub { $redis->now > $heartbeat + 1.1 });
        change($two, refresh => $addr, ns => $ns);
        ok(in_redis($ns, $addr, sub { $_[0]{heartbeat} > $heartbeat })->{heartbeat} > $heartbeat, 'a heartbeat');
        change($one, remove => $addr, ns => $ns);
        is(in_redis($ns, $addr, sub { !%{ $_[0] } }), undef, 'removed it is in none of the keys');
    };
}

subtest 'a static member is nobody else\'s business' => sub {
    my $static = node(redis => $redis, inside => 'server 127.0.0.9:9 weight=2;');
    connected($static);
    change($static, add => $addr);
    becomes($two, $addr, {}, 'what is registered there comes');
    is(known($two), $addr, 'and only that');
    is_deeply([ keys %{ $redis->registry } ], [$addr], 'Redis has no more either');
    change($two, remove => $addr);
    becomes($static, $addr, undef, 'removed elsewhere it goes');
    is(known($static), '127.0.0.9:9', 'the static one stays');
    $static->log_is_clean;
};

for my $ns (qw(default other)) {
    subtest "servers that another program registers, in the namespace $ns" => sub {
        my $path = $ns eq 'default' ? '/' : "/$ns/";
        my $since = time;
        $redis->register($ns, $backend->address);
        ok(wait_until(sub { answers($_, 1, $path) eq 'web' }), 'ZADD, HSET and HSET: it serves requests') for @nodes;
        seen_within($since, 'within redis_interval');
        my $server = server($one, $backend->address, $ns);
        is("$server->{weight} $server->{max_conns} $server->{state}", '1 1000 up', 'as was said');

        $since = time;
        $redis->change($ns, $backend->address, weight => 4, max_conns => 0);
        becomes($_, $backend->address, { weight => 4, max_conns => 0 }, 'its weight and its limit', ns => $ns) for @nodes;
        $redis->change($ns, $backend->address, enabled => JSON::PP::false());
        becomes($_, $backend->address, { enabled => 'false', state => 'down' }, 'disabled', ns => $ns) for @nodes;
        is(answers($two, 1, $path), 502, 'it serves no requests');
        $redis->change($ns, $backend->address, enabled => JSON::PP::true());
        becomes($_, $backend->address, { enabled => 'true', state => 'up' }, 'enabled', ns => $ns) for @nodes;
        is(answers($two, 1, $path), 'web', 'it does');

        change($one, weight => $backend, ns => $ns, weight => 6);
        is(in_redis($ns, $backend->address, sub { $_[0]{meta}{weight} == 6 })->{meta}{weight}, 6, 'what a node changes then is there');
        becomes($two, $backend->address, { weight => 6 }, 'and on the other', ns => $ns);

        $since = time;
        $redis->unregister($ns, $backend->address);
        becomes($_, $backend->address, undef, 'HDEL and ZREM: it goes', ns => $ns) for @nodes;
        seen_within($since, 'within redis_interval');
        sleep 2 * $INTERVAL;
        is_deeply($redis->registry($ns), {}, 'and nobody puts it back');
        is(known($_, $ns), '', 'nor knows it') for @nodes;
    };
}

subtest 'with less than all that may be said of it' => sub {
    $redis->cli(HSET => 'upstream:servers:meta', '127.0.0.9:81', '{"host":"127.0.0.9","port":81}');
    becomes($_, '127.0.0.9:81', { weight => 1, max_conns => 1000, enabled => 'true', state => 'up' }, 'HSET alone registers, as add does') for @nodes;
    ok(in_redis('default', '127.0.0.9:81', sub { defined $_[0]{score} })->{score} == 0, 'and is put into the ZSET');
    $redis->register('default', '[2001:db8::1]:80', weight => 2);
    becomes($_, '[2001:db8::1]:80', { host => '2001:db8::1', weight => 2 }, 'IPv6') for @nodes;
    $redis->cli(DEL => 'upstream:servers:meta', 'upstream:servers:zset', 'upstream:heartbeat');
    ok(wait_until(sub { known($one) eq known($two) }), 'the keys are deleted');
    for my $server ('127.0.0.9:81', '[2001:db8::1]:80') { call($one, remove => $server) }
    agree(\@nodes, [], 'nothing is left');
};

subtest 'a heartbeat that another program writes' => sub {
    my $ttl = 1.5 * time_scale();
    my $third = node(redis => $redis, settings => { heartbeat_ttl => ms($ttl), redis_prefix => 'short' });
    my $say = sub { $redis->cli(HSET => 'short:heartbeat', $addr, $_[0]) };
    my $age = sub { my $server = server($third, $addr); $server ? $server->{time_since_heartbeat} : 1e9 };
    $redis->register('default', $addr, prefix => 'short');
    becomes($third, $addr, { state => 'up' }, 'a server');
    is_deeply([ grep { !/^(?:short|upstream):/ } @{ $redis->cli(KEYS => '*') } ], [], 'another prefix is another registry');
    is(known($one), '', 'of which the first does not know');

    for (1 .. 3) {
        sleep $ttl / 2;
        $say->(sprintf '%.3f', $redis->now);
    }
    is(server($third, $addr)->{state}, 'up', 'kept alive by HSET alone');
    ok(wait_until(sub { server($third, $addr)->{state} eq 'expired' }), 'until it falls silent');
    $say->(sprintf '%.3f', $redis->now);
    becomes($third, $addr, { state => 'up' }, 'with the next it is back');

    # The value of one whose clock is wrong.
    for my $case ([ 'an hour slow', -3600 ], [ 'an hour fast', 3600 ], [ 'of another age', -1e9 ]) {
        my ($what, $off) = @$case;
        sleep $ttl / 3;
        my $old = $age->();
        $say->(int($redis->now + $off));
        ok(wait_until(sub { $age->() < $old }), "a clock $what: it counts");
        ok(abs(server($third, $addr)->{last_heartbeat} - time) < $SOON + 0.1, 'as a sign of life now')
            or diag(server($third, $addr)->{last_heartbeat} - time);
        $say->(int($redis->now + $off) + $_ + 1), sleep $ttl / 2 for 1 .. 3;
        is(server($third, $addr)->{state}, 'up', 'each that differs from the one before');
    }
    ok(wait_until(sub { server($third, $addr)->{state} eq 'expired' }, 3 * $ttl), 'what stays as it is says nothing');
    $third->log_is_clean;
    log_says($third, 'used', 'no word of all that in the log');
};

subtest 'allow_servers is for what comes from Redis too' => sub {
    my $from = $one->log_size;
    $redis->register('default', '192.0.2.1:80');
    $redis->register('default', '10.1.2.3:80');
    agree([$two], [ '10.1.2.3:80', '192.0.2.1:80' ], 'where all are allowed both are there');
    becomes($one, '10.1.2.3:80', {}, 'where one is not, the other is');
    sleep 3 * $INTERVAL;
    is(known($one), '10.1.2.3:80', 'and it alone');
    is(known($two), '10.1.2.3:80 192.0.2.1:80', 'whoever may know it keeps it');
    log_says($one, 'outside', 'the log says so once', $from);
    like((redis_lines($one, $from))[0] || '', qr/192\.0\.2\.1:80/, 'and of whom');
    $redis->unregister('default', $_) for '192.0.2.1:80', '10.1.2.3:80';
    agree(\@nodes, [], 'both go');
};

log_says($two, 'used', 'no other line about Redis');
$_->log_is_clean for @nodes;
done_testing;
