# A node whose clock is an hour off agrees with the others all the same: on heartbeats, on which change is the
# later one, and on who has expired.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TTL = 1.2 * time_scale();

for my $offset (3600, -3600) {
    my $what = $offset > 0 ? 'an hour ahead' : 'an hour behind';
    subtest $what => sub {
        my $redis = RegistryTest->redis;
        my $clock = RegistryTest->clock($offset);
        my @proxies = map { RegistryTest->proxy($redis->address) } 1, 2;
        my %settings = (heartbeat_ttl => ms($TTL), redis_timeout => ms(0.3 * time_scale()));
        my ($wrong, $right) = my @nodes = map {
            node(redis => $redis->url(port => $proxies[$_]->port), settings => \%settings, $_ ? () : (env => $clock->env))
        } 0, 1;
        connected($_) for @nodes;
        my $is_off = status($wrong, 'default')->{timestamp} - time - $offset;
        ok(abs($is_off) < 2, 'its clock is') or diag($is_off);
        my $addr = '127.0.0.9:1';

        for my $case ([ $wrong, $right ], [ $right, $wrong ]) {
            my ($here, $there) = @$case;
            my $who = $here == $wrong ? 'wrong' : 'right';
            change($here, add => $addr);
            becomes($there, $addr, { state => 'up' }, "added where the clock is $who, it is up on both");
            my $server = server($there, $addr);
            cmp_ok($server->{time_since_heartbeat}, '<', $TTL, 'and heard of just now');
            cmp_ok($server->{time_since_heartbeat}, '>=', 0, 'not in the future');
            ok(abs($redis->registry->{$addr}{heartbeat} - $redis->now) < 3, 'by the clock of Redis');
            my $until = time + 2 * $TTL;
            my %states;
            while (time < $until) {
                change($here, refresh => $addr);
                $states{ server($_, $addr)->{state} } = 1 for @nodes;
                sleep $TTL / 6;
            }
            is(join(' ', keys %states), 'up', 'heartbeats keep it so');
            my $since = time;
            ok(wait_until(sub { server($there, $addr)->{state} eq 'expired' }), 'silent, it expires there');
            ok(wait_until(sub { server($here, $addr)->{state} eq 'expired' }), 'and here');
            my $took = time - $since;
            ok($took > 0.7 * $TTL && $took < $TTL + $SLACK, 'in its time') or diag($took);
            change($there, refresh => $addr);
            becomes($here, $addr, { state => 'up' }, 'a heartbeat on the other brings it back');
            change($here, remove => $addr);
            becomes($there, $addr, undef, 'removed it goes');
        }

        # Cut off: what is later is so by time that has passed, not by what a clock says.
        for my $later (0, 1) {
            my ($first, $last) = @nodes[ !$later, $later ];
            my $who = $later ? 'right' : 'wrong';
            change($wrong, add => "127.0.0.9:$_") for 2 .. 5;
            agree(\@nodes, [ map { "127.0.0.9:$_" } 2 .. 5 ], 'four servers');
            $_->refuse for @proxies;
            ok(disconnected($_), 'cut off') for @nodes;
            change($first, weight => '127.0.0.9:2', weight => 3);
            change($first, toggle => '127.0.0.9:3', action => 'enable');
            change($first, add => '127.0.0.9:6', weight => 3);
            change($first, remove => '127.0.0.9:4');
            sleep 0.1 * time_scale();
            change($last, weight => '127.0.0.9:2', weight => 8);
            disable($last, '127.0.0.9:3');
            change($last, add => '127.0.0.9:6', weight => 8);
            change($last, refresh => '127.0.0.9:4');
            $_->heal for @proxies[ 0, 1 ];
            ok(pushed($_, 10 * time_scale()), 'mended') for @nodes;
            ok(wait_until(sub { !server($_, '127.0.0.9:4') }), 'what was removed is gone') for @nodes;
            for my $node (@nodes) {
                becomes($node, '127.0.0.9:2', { weight => 8 }, "the later weight counts, where the clock is $who");
                becomes($node, '127.0.0.9:3', { enabled => 'false' }, 'so does the later switch');
                becomes($node, '127.0.0.9:6', { weight => 8 }, 'and the later add');
            }
            ok(same(\@nodes, 'default'), 'they are equal');
            redis_agrees_but_expiry($redis, $right);
            change($last, remove => $_) for map { "127.0.0.9:$_" } 2, 3, 5, 6;
            agree(\@nodes, [], 'all go');
        }

        # What another program says, with that clock.
        # The first value is taken for what it is: it may be a stale one.
        $redis->register('default', $addr, heartbeat => int($redis->now + $offset), created_at => time + $offset);
        becomes($_, $addr, {}, 'a server registered by such a clock') for @nodes;
        $redis->cli(HSET => 'upstream:heartbeat', $addr, int($redis->now + $offset) - 1);
        becomes($_, $addr, { state => 'up' }, 'its heartbeat counts') for @nodes;
        $redis->cli(HSET => 'upstream:heartbeat', $addr, int($redis->now + $offset) + $_), sleep $TTL / 2 for 1 .. 4;
        is(server($_, $addr)->{state}, 'up', 'when it changes') for @nodes;
        ok(wait_until(sub { server($_, $addr)->{state} eq 'expired' }), 'and when it does not, it expires') for @nodes;
        log_says($_, 'used away again away again', 'the log') for @nodes;
        $_->log_is_clean for @nodes;
    };
}

# Expiry is each node's own affair, and in Redis all are enabled but those disabled by hand.
sub redis_agrees_but_expiry {
    my ($redis, $node) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($in_redis, $on_node);
    my $ok = wait_until(sub {
        my $keys = $redis->registry;
        $in_redis = join ' ', map { "$_=" . ($keys->{$_}{meta}{weight} // '') } sort keys %$keys;
        my $servers = servers($node, 'default');
        $on_node = join ' ', map { "$_=$servers->{$_}{weight}" } sort keys %$servers;
        return $in_redis eq $on_node;
    });
    return ok($ok, 'in Redis too') || diag("$in_redis\n$on_node");
}

subtest 'a clock that is set while it runs' => sub {
    my $redis = RegistryTest->redis;
    my $clock = RegistryTest->clock(0);
    my ($set, $other) = my @nodes = map { node(redis => $redis, settings => { heartbeat_ttl => ms($TTL) }, $_ ? (env => $clock->env) : ()) } 1, 0;
    connected($_) for @nodes;
    my $addr = '127.0.0.9:1';
    change($other, add => $addr);
    change($set, add => '127.0.0.9:2');
    agree(\@nodes, [ $addr, '127.0.0.9:2' ], 'two servers');
    for my $offset (3600, -3600, 86400 * 400, 0) {
        $clock->set($offset);
        my ($until, %states) = (time + 0.8 * $TTL);
        while (time < $until) {
            change($other, refresh => $addr);
            change($set, refresh => '127.0.0.9:2');
            for my $node (@nodes) { $states{ server($node, $_)->{state} } = 1 for $addr, '127.0.0.9:2' }
            sleep $TTL / 8;
        }
        is(join(' ', keys %states), 'up', "set to $offset seconds off, nobody expires");
        ok(sync($set)->{connected}, 'Redis is used');
        is(sync($other)->{nodes}, 2, 'two nodes');
        my $weight = 1 + int rand 1000;
        change($set, weight => $addr, weight => $weight);
        becomes($other, $addr, { weight => $weight }, 'changes go on');
        change($other, weight => '127.0.0.9:2', weight => $weight);
        becomes($set, '127.0.0.9:2', { weight => $weight }, 'both ways');
    }
    log_says($_, 'used', 'the log') for @nodes;
    $_->log_is_clean for @nodes;
};

done_testing;
