# What other programs write to Redis by mistake: keys of the wrong type, and entries that say nothing. Each is
# left out with one line in a log that names it (one node looks for all), and the rest works.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $redis = RegistryTest->redis;
my @nodes = map { node(redis => $redis) } 1, 2;
connected($_) for @nodes;
change($nodes[0], add => '127.0.0.9:1', weight => 3);
agree(\@nodes, [ '127.0.0.9:1 3 1000 true up' ], 'a server');

sub since { return map { $_->log_size } @nodes }
# What the nodes' logs say of one entry or key since then.
sub lines_on {
    my ($name, @from) = @_;
    return map { grep { /"\Q$name\E"/ } redis_lines($nodes[$_], $from[$_]) } 0, 1;
}

subtest 'entries that say nothing' => sub {
    my %good = (host => '127.0.0.9', port => 1);
    my @broken = (
        [ '127.0.0.9:20', '{"host":"127.0.0.9","port":20' ],
        [ '127.0.0.9:21', '' ],
        [ '127.0.0.9:22', "\0\377\376" ],
        [ '127.0.0.9:23', '[]' ],
        [ '127.0.0.9:24', '"text"' ],
        [ '127.0.0.9:25', 'null' ],
        [ '127.0.0.9:26', '{"host":"127.0.0.9","port":26,"weight":-1}' ],
        [ '127.0.0.9:27', '{"host":"127.0.0.9","port":27,"weight":"many"}' ],
        [ '127.0.0.9:28', '{"host":"127.0.0.9","port":28,"weight":1e99}' ],
        [ '127.0.0.9:29', '{"host":"127.0.0.9","port":29,"max_conns":-5}' ],
        [ '127.0.0.9:30', '{"host":"127.0.0.9","port":30,"enabled":"perhaps"}' ],
        [ '127.0.0.9:31', '[' x 20_000 ],
        [ '127.0.0.9:32', '{"host":"127.0.0.9","port":32,"weight":{"a":1}}' ],
        [ '127.0.0.9:42', "{\"host\":\"127.0.0.9\",\"port\":42,\"name\":\"\377\"}" ],
        [ 'Local.Host.:33', '{"host":"Local.Host.","port":33}' ],
        [ '127.0.0.9', '{"host":"127.0.0.9","port":34}' ],
        [ '127.0.0.9:0', '{"host":"127.0.0.9","port":0}' ],
        [ '127.0.0.9:65536', '{"host":"127.0.0.9","port":65536}' ],
        [ '127.0.0.09:35', '{"host":"127.0.0.9","port":35}' ],
        [ '0.0.0.0:36', '{"host":"0.0.0.0","port":36}' ],
        [ '[2001:DB8::1]:37', '{"host":"2001:db8::1","port":37}' ],
        [ '2001:db8::1:38', '{"host":"2001:db8::1","port":38}' ],
        [ '[::ffff:127.0.0.9]:39', '{"host":"127.0.0.9","port":39}' ],
        [ '127.0.0.9:40 ', '{"host":"127.0.0.9","port":40}' ],
        [ 'unix:/tmp/socket', '{"host":"unix:/tmp/socket"}' ],
        [ 'x' x 300, '{"host":"127.0.0.9","port":41}' ],
    );
    my @from = since();
    $redis->cli(HSET => 'upstream:servers:meta', map { @$_ } @broken);
    $redis->register('default', '127.0.0.9:2');
    agree(\@nodes, [ '127.0.0.9:1', '127.0.0.9:2' ], 'a good one among them is taken');
    change($nodes[0], add => '127.0.0.9:3');
    change($nodes[0], weight => '127.0.0.9:1', weight => 5);
    agree(\@nodes, [ '127.0.0.9:1 5 1000 true up', '127.0.0.9:2', '127.0.0.9:3' ], 'and changes go on');
    sleep 5 * $INTERVAL;
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1 .. 3 ], 'they alone are servers');
    for my $entry (@broken) {
        my $addr = $entry->[0];
        next if length $addr > 100;
        my @lines = lines_on($addr, @from);
        is(scalar @lines, 1, "\"$addr\" is named once") or diag(join "\n", @lines);
        like($lines[0] || '', qr/\[warn\] .*registry "main": entry "\Q$addr\E" of "upstream:servers:meta" in Redis is skipped: \S.+$/, 'and why');
    }
    my @all = map { redis_lines($nodes[$_], $from[$_]) } 0, 1;
    is(scalar @all, scalar @broken, 'there is no other line');
    is(scalar(keys %{ $redis->hash('upstream:servers:meta') }), @broken + 3, 'they are left where they are');

    @from = since();
    $redis->cli(HSET => 'upstream:servers:meta', '127.0.0.9:20', '{"host":"127.0.0.9","port":20,"weight":9}');
    becomes($_, '127.0.0.9:20', { weight => 9 }, 'one that is made good is taken') for @nodes;
    $redis->cli(HSET => 'upstream:servers:meta', '127.0.0.9:20', '{"host":"127.0.0.9","port":20,"weight":');
    sleep 3 * $INTERVAL;
    becomes($_, '127.0.0.9:20', { weight => 9, state => 'up' }, 'one that is spoilt stays as it was known') for @nodes;
    is(scalar(lines_on('127.0.0.9:20', @from)), 1, 'and is named once more');
    change($nodes[1], weight => '127.0.0.9:20', weight => 4);
    becomes($nodes[0], '127.0.0.9:20', { weight => 4 }, 'a change makes it good again');
    is($redis->registry->{'127.0.0.9:20'}{meta}{weight}, 4, 'in Redis too');
    $redis->cli(HDEL => 'upstream:servers:meta', map { $_->[0] } @broken[ 1 .. $#broken ]);
    call($nodes[0], remove => $_) for '127.0.0.9:20', map { "127.0.0.9:$_" } 2, 3;
    agree(\@nodes, ['127.0.0.9:1'], 'what is removed stays so');
    $redis->cli(HDEL => 'upstream:servers:meta', '127.0.0.9:20');
};

subtest 'scores and heartbeats that are none' => sub {
    my @from = since();
    $redis->register('default', '127.0.0.9:4', heartbeat => 'never');
    becomes($_, '127.0.0.9:4', { state => 'up' }, 'a heartbeat that is no number') for @nodes;
    $redis->cli(HSET => 'upstream:heartbeat', '127.0.0.9:4', $_) for '', 'inf', 'nan', '-1', '1e400', "\0";
    $redis->cli(HSET => 'upstream:heartbeat', 'nobody:1', 5);
    $redis->cli(ZADD => 'upstream:servers:zset', 'inf', '127.0.0.9:4', 7, 'nobody:2');
    sleep 3 * $INTERVAL;
    agree(\@nodes, [ '127.0.0.9:1', '127.0.0.9:4' ], 'such values, and those of nobody, change nothing');
    is(server($_, '127.0.0.9:4')->{connections}, 0, 'nor any count') for @nodes;
    change($nodes[0], refresh => '127.0.0.9:4');
    ok(wait_until(sub { $redis->registry->{'127.0.0.9:4'}{heartbeat} =~ /^\d+(?:\.\d+)?$/ }), 'a heartbeat puts a good one there');
    call($nodes[0], remove => '127.0.0.9:4');
    agree(\@nodes, ['127.0.0.9:1'], 'it goes');
    $redis->cli(HDEL => 'upstream:heartbeat', 'nobody:1');
    $redis->cli(ZREM => 'upstream:servers:zset', 'nobody:2');
    is(join(' ', map { scalar grep { !/skipped/ } redis_lines($nodes[$_], $from[$_]) } 0, 1), '0 0', 'the log says at most that an entry is skipped');
};

for my $key (qw(servers:meta servers:zset heartbeat)) {
    my %is = ('servers:meta' => 'hash', 'servers:zset' => qr/sorted set|zset|ZSET/, heartbeat => 'hash');
    subtest "upstream:$key of another type" => sub {
        change($nodes[0], add => '127.0.0.9:1');
        agree(\@nodes, ['127.0.0.9:1'], 'a server');
        my @from = since();
        $redis->cli(SET => "upstream:$key", 'something');
        change($nodes[0], add => '127.0.0.9:5', weight => 2);
        agree(\@nodes, [ '127.0.0.9:1', '127.0.0.9:5 2 1000 true up' ], 'a server is known to both all the same');
        change($nodes[1], weight => '127.0.0.9:5', weight => 6);
        change($nodes[1], refresh => '127.0.0.9:5');
        change($nodes[1], add => '127.0.0.9:6', ns => 'other');
        becomes($nodes[0], '127.0.0.9:5', { weight => 6 }, 'so is a change');
        becomes($nodes[0], '127.0.0.9:6', {}, 'and one in another namespace', ns => 'other');
        sleep 3 * $INTERVAL;
        is($redis->cli(GET => "upstream:$key"), 'something', 'what is there is left alone');
        my @lines = lines_on("upstream:$key", @from);
        ok(@lines == 1 || @lines == 2, 'each node that is to write there names it once') or diag(join "\n", @lines);
        like($lines[0] || '', qr/\[warn\] .*registry "main": key "upstream:$key" in Redis is left alone: it is no $is{$key}/, 'and what it should be');
        ok(sync($_)->{connected}, 'Redis is used') for @nodes;

        $redis->cli(DEL => "upstream:$key");
        # The others with the next heartbeat, and with the next request.
        ok(wait_until(sub { $redis->cli(TYPE => "upstream:$key") eq 'hash' }), 'taken away, it is written anew') if $key eq 'servers:meta';
        agree(\@nodes, [ '127.0.0.9:1', '127.0.0.9:5' ], 'and no server is lost by it');
        redis_agrees($redis, \@nodes, 'Redis has them');
        # Long enough to be seen.
        sleep 3 * $INTERVAL;
        @from = since();
        $redis->cli(SET => "upstream:$key", 'again');
        change($nodes[1], add => '127.0.0.9:7');
        change($nodes[1], refresh => '127.0.0.9:1');
        sleep 3 * $INTERVAL;
        @lines = lines_on("upstream:$key", @from);
        ok(@lines == 1 || @lines == 2, 'broken once more, it is named once more') or diag(join "\n", @lines);
        $redis->cli(DEL => "upstream:$key");
        call($nodes[0], remove => '127.0.0.9:6', ns => 'other');
        call($nodes[1], remove => '127.0.0.9:7');
        call($nodes[0], remove => '127.0.0.9:5');
        agree(\@nodes, ['127.0.0.9:1'], 'changes go on');
        redis_agrees($redis, \@nodes, 'in Redis too');
    };
}

subtest 'private keys that somebody has spoilt' => sub {
    call($nodes[0], remove => "127.0.0.9:$_") for 5, 6;
    change($nodes[0], add => "127.0.0.9:$_", weight => $_) for 1 .. 4;
    my @servers = map { "127.0.0.9:$_ $_ 1000 true up" } 1 .. 4;
    agree(\@nodes, \@servers, 'four servers');
    my @keys = grep { !/:sync:(?:epoch|wiped|counts:)/ } @{ $redis->cli(KEYS => 'upstream:sync:*') };
    cmp_ok(scalar @keys, '>=', 10, 'some keys');
    for my $key (sort @keys) {
        my @from = since();
        # One type that none of them has.
        $redis->cli(EVAL => "redis.call('DEL', KEYS[1]) redis.call('XADD', KEYS[1], '*', 'a', 'b')", 1, $key);
        # That one is read on new connections.
        $redis->cli(CLIENT => KILL => TYPE => 'normal') if $key =~ /:process$/;
        my $weight = 10 + int rand 1000;
        change($nodes[1], weight => '127.0.0.9:1', weight => $weight);
        agree(\@nodes, [ "127.0.0.9:1 $weight 1000 true up", @servers[ 1 .. 3 ] ], "$key of another type: changes go on", timeout => 10 * time_scale());
        ok(pushed($_, 10 * time_scale()), 'and are pushed') for @nodes;
        redis_agrees($redis, \@nodes, 'Redis has them', timeout => 10 * time_scale());
        my @lines = map { redis_lines($nodes[$_], $from[$_]) } 0, 1;
        cmp_ok(scalar @lines, '<=', 6, 'the log says little') or diag(join "\n", @lines);
        if (!ok(wait_until(sub { ($redis->cli(TYPE => $key) // '') ne 'stream' }), 'it is one of the nodes\' again')) {
            $redis->cli(DEL => $key);
        }
        @from = since();
        $redis->cli(DEL => $key);
        $weight++;
        change($nodes[0], weight => '127.0.0.9:1', weight => $weight);
        agree(\@nodes, [ "127.0.0.9:1 $weight 1000 true up", @servers[ 1 .. 3 ] ], 'deleted: changes go on too', timeout => 10 * time_scale());
    }
    change($nodes[0], remove => '127.0.0.9:2');
    agree(\@nodes, [ map { "127.0.0.9:$_" } 1, 3, 4 ], 'all is well');
    redis_agrees($redis, \@nodes, 'in Redis too');
};

$_->log_is_clean for @nodes;
done_testing;
