# The Redis of the plain Perl tests, what may stand before it, and the helpers for several nodes,
# with stock nginx: each method does what it says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

sub dies { my ($code) = @_; return eval { $code->(); 1 } ? '' : $@ }

subtest 'a Redis, and its client' => sub {
    my $redis = RegistryTest->redis;
    is($redis->url, 'redis://127.0.0.1:' . $redis->port . '/0', 'its URL');
    my $binary = join '', map { chr } 0 .. 255;
    is($redis->cli(SET => key => "$binary\r\n"), 'OK', 'it takes bytes of all kinds');
    is($redis->cli(GET => 'key'), "$binary\r\n", 'and gives them back');
    is($redis->cli(GET => 'none'), undef, 'what is not there is undef');
    is($redis->cli(GET => ''), undef, 'an empty word is one');
    is($redis->cli(INCR => 'n'), 1, 'a number');
    is_deeply($redis->cli(EVAL => 'return {1, "two", {3, false}}', 0), [ 1, 'two', [ 3, undef ] ], 'an array');
    is(dies(sub { $redis->cli(LPUSH => n => 1) }), "WRONGTYPE Operation against a key holding the wrong kind of value\n", 'an error dies');
    is($redis->cli('PING'), 'PONG', 'and leaves the connection');
    $redis->cli(HSET => h => a => 1, b => 2);
    is_deeply($redis->hash('h'), { a => 1, b => 2 }, 'a hash');
    is_deeply([ $redis->client->pipeline([ INCR => 'n' ], [ INCR => 'n' ]) ], [ 2, 3 ], 'a pipeline');
    my $big = 'x' x 3_000_000;
    $redis->cli(SET => big => $big);
    ok($redis->cli(GET => 'big') eq $big, 'three million bytes');
    ok(abs($redis->now - time) < 1, 'its clock');

    my $client = $redis->client(timeout => 0.2);
    ok($redis->pause, 'paused');
    is(dies(sub { $client->call('PING') }), "timeout\n", 'it answers nothing');
    $redis->resume;
    is($client->receive(timeout => 2), 'PONG', 'until it is resumed');

    for my $signal (qw(TERM KILL)) {
        my $pid = $redis->pid;
        is($redis->stop($signal), $signal, "stopped by $signal");
        ok(!alive($pid) && !$redis->running, 'it is gone');
        like(dies(sub { $redis->cli('PING') }), qr/Connection refused/, 'and refuses connections');
        ok($redis->start && $redis->running, 'it comes back on the same port');
        is($redis->cli(DBSIZE =>), 0, 'with nothing in it');
    }
    $redis->cli('PING');
    $redis->cli(CLIENT => KILL => TYPE => 'normal', SKIPME => 'no');
    is($redis->cli('PING'), 'PONG', 'a connection that was lost is made anew');
    is($redis->info->{redis_mode}, 'standalone', 'info');
    my @busy = $redis->busy(0.5);
    my $since = time;
    $redis->cli(@busy);
    my $took = time - $since;
    ok($took > 0.2 && $took < 4, 'busy with a script') or diag($took);
};

subtest 'what is on disk' => sub {
    for my $persist (qw(aof rdb)) {
        my $redis = RegistryTest->redis(persist => $persist);
        $redis->cli(SET => key => 'kept');
        $redis->cli('SAVE') if $persist eq 'rdb';
        $redis->stop('KILL');
        $redis->start;
        is($redis->cli(GET => 'key'), 'kept', "$persist: what was in it is there after it was killed");
        $redis->stop;
        $redis->start(empty => 1);
        is($redis->cli(GET => 'key'), undef, 'unless it is to be empty');
    }
};

subtest 'passwords, users, a limit of memory, a unix socket, TLS' => sub {
    my $redis = RegistryTest->redis(password => 'secret', user => [ 'web', 'word', '~upstream:*', '&upstream:*', '+@all' ],
        maxmemory => '5mb', tls => 1, socket => 1);
    is($redis->url(db => 2), 'redis://:secret@127.0.0.1:' . $redis->port . '/2', 'the URL has the password');
    is($redis->cli('PING'), 'PONG', 'which the client knows');
    like(dies(sub { RegistryTest::Resp->new($redis->address)->call('PING') }), qr/^NOAUTH/, 'and without which it does not go');
    my $web = RegistryTest::Resp->new($redis->address, user => 'web', password => 'word');
    is($web->call(SET => 'upstream:a' => 1), 'OK', 'a user may');
    like(dies(sub { $web->call(SET => a => 1) }), qr/^NOPERM/, 'what the rules say');
    like(dies(sub { $redis->cli(SET => big => 'x' x 10_000_000) }), qr/^OOM/, 'no more memory than it has');
    is(RegistryTest::Resp->new('unix:' . $redis->socket, password => 'secret')->call('PING'), 'PONG', 'the socket');
    my $dir = RegistryTest::Redis->certificates;
    my @s_client = (qw(openssl s_client -quiet -verify_return_error -no_ign_eof -connect), '127.0.0.1:' . $redis->tls_port, '-verify_ip', '127.0.0.1');
    is(system("@s_client -CAfile $dir/ca.pem </dev/null >/dev/null 2>&1") >> 8, 0, 'its certificate is of its CA');
    isnt(system("@s_client -CAfile $dir/other.pem </dev/null >/dev/null 2>&1") >> 8, 0, 'and of no other');
};

subtest 'a replica' => sub {
    my $master = RegistryTest->redis;
    my $replica = RegistryTest->redis(replicaof => $master);
    $master->cli(SET => key => 'value');
    ok($replica->in_step, 'it keeps in step');
    is($replica->cli(GET => 'key'), 'value', 'with its master');
    like(dies(sub { $replica->cli(SET => a => 1) }), qr/^READONLY/, 'and takes no writes');
};

subtest 'sentinels' => sub {
    my $master = RegistryTest->redis;
    my $replica = RegistryTest->redis(replicaof => $master);
    my $sentinel = RegistryTest->sentinel(master => $master, replicas => [$replica], count => 3);
    is($sentinel->url, 'redis+sentinel://' . join(',', map { "127.0.0.1:$_" } $sentinel->ports) . '/main/0', 'their URL');
    is($sentinel->master_port, $master->port, 'they name the master');
    $master->cli(SET => key => 'value');
    $replica->in_step;
    my $since = time;
    $master->stop('KILL');
    my $new = $sentinel->promoted($master->port, $master, $replica);
    ok($new && $new == $replica, 'when it is killed, the replica') and diag(sprintf 'failover after %.1f s', time - $since);
    is($replica->cli(INCR => 'n'), 1, 'which takes writes then');
    is($replica->cli(GET => 'key'), 'value', 'and has what it had');
    $master->start;
    ok(wait_until(sub { eval { $master->info('replication')->{role} eq 'slave' } }, 20), 'back again, the old one is a replica');
    $sentinel->stop;
};

subtest 'a cluster' => sub {
    my $since = time;
    my @nodes = RegistryTest->cluster;
    is(scalar @nodes, 3, 'three masters');
    diag(sprintf 'a cluster in %.1f s', time - $since);
    my ($owner, $slot) = RegistryTest::Redis->owner('{upstream}:a', @nodes);
    is($owner->cli(SET => '{upstream}:a' => 1), 'OK', 'the owner of a key takes it');
    my ($other) = grep { $_ != $owner } @nodes;
    like(dies(sub { $other->cli(GET => '{upstream}:a') }), qr/^MOVED $slot /, 'the others do not');
    RegistryTest::Redis->move_slot($slot, $owner, $other, @nodes);
    is($other->cli(GET => '{upstream}:a'), 1, 'a slot moves with its keys');
    is((RegistryTest::Redis->owner('{upstream}:a', @nodes))[0], $other, 'and has another owner then');
};

subtest 'a proxy' => sub {
    my $redis = RegistryTest->redis;
    my $proxy = RegistryTest->proxy($redis->address);
    my $connect = sub { RegistryTest::Resp->new($proxy->address, timeout => 2, @_) };
    my $client = $connect->();
    my $big = 'x' x 1_000_000;
    is($client->call(SET => key => $big), 'OK', 'it passes on what comes');
    ok($client->call(GET => 'key') eq $big, 'both ways');
    my $stats = $proxy->stats;
    ok($stats->{connections} == 1 && $stats->{open} == 1 && $stats->{up} > 1e6 && $stats->{down} > 1e6, 'and counts it');

    $proxy->delay(0.2);
    my $since = time;
    $client->call('PING');
    my $took = time - $since;
    ok($took >= 0.4 && $took < 2, 'delay: each way') or diag($took);
    $proxy->heal(keep => 1);
    $since = time;
    $client->call('PING');
    ok(time - $since < 0.2, 'healed, and with the same connection');

    $proxy->pieces(1);
    is($client->call(ECHO => 'some bytes'), 'some bytes', 'pieces: arrive as a whole');
    $proxy->heal;
    like(dies(sub { $client->call('PING') }), qr/closed|reset|Broken/, 'healed: a new connection is needed');

    $client = $connect->();
    $client->call('PING');
    $proxy->drop;
    like(dies(sub { $client->call('PING') }), qr/closed|reset|Broken/, 'drop: a connection is reset');
    $client = $connect->(timeout => 0.3);
    is($client->call('PING'), 'PONG', 'the next is not');

    $proxy->blackhole;
    $client->send('PING');
    is(dies(sub { $client->receive }), "timeout\n", 'blackhole: no answer');
    my $new = $connect->(timeout => 0.3);
    is(dies(sub { $new->call('PING') }), "timeout\n", 'on a new connection neither');
    $proxy->heal(keep => 1);
    is($client->receive(timeout => 2), 'PONG', 'it comes when that is over');

    $proxy->truncate(100);
    like(dies(sub { $connect->()->call(ECHO => 'x' x 200) }), qr/closed|reset/, 'truncate: cut in the middle');
    $new = $connect->();
    is($new->call('PING'), 'PONG', 'not before');
    like(dies(sub { $new->call('PING') for 1 .. 20 }), qr/closed|reset/, 'the bytes of a connection add up');
    $proxy->heal;

    my $subscriber = $connect->(timeout => 0.3);
    $subscriber->call(SUBSCRIBE => 'c');
    $redis->cli(PUBLISH => c => 'one');
    is($subscriber->receive->[2], 'one', 'a message');
    $proxy->deaf;
    $redis->cli(PUBLISH => c => 'two');
    is(dies(sub { $subscriber->receive }), "timeout\n", 'deaf: it is lost');
    is($connect->()->call('PING'), 'PONG', 'answers are not');
    $proxy->heal;
    $subscriber = $connect->();
    $subscriber->call(SUBSCRIBE => 'c');
    is($redis->cut_subscribers, 1, 'a subscriber is cut off');
    like(dies(sub { $subscriber->receive }), qr/closed|reset/, 'and notices');

    $proxy->refuse;
    like(dies(sub { $connect->() }), qr/Connection refused/, 'refuse');
    $proxy->heal;
    $client = $connect->();
    is($client->call('PING'), 'PONG', 'healed');

    my $other = RegistryTest->redis;
    $other->cli(SET => key => 'other');
    $proxy->target($other->address);
    is($connect->()->call(GET => 'key'), 'other', 'another server stands behind it');
    $other->stop;
    like(dies(sub { $connect->()->call('PING') }), qr/closed|reset|refused/i, 'and nobody');
    ok($proxy->stop, 'it stops');
};

subtest 'the keys of a registry' => sub {
    my $redis = RegistryTest->redis;
    $redis->register('default', '10.0.0.1:80', weight => 2);
    $redis->register('other', '[2001:db8::1]:80', heartbeat => 5);
    my $default = $redis->registry->{'10.0.0.1:80'};
    is($default->{score}, 0, 'a score');
    is("$default->{meta}{host} $default->{meta}{port} $default->{meta}{weight}", '10.0.0.1 80 2', 'the JSON');
    ok(abs($default->{heartbeat} - time) < 2, 'a heartbeat');
    is($redis->registry('other')->{'[2001:db8::1]:80'}{heartbeat}, 5, 'another namespace');
    is_deeply([ sort @{ $redis->cli(KEYS => '*') } ], [ map { "upstream:$_" }
        qw(heartbeat other:heartbeat other:servers:meta other:servers:zset servers:meta servers:zset) ], 'the names of the keys');
    $redis->change('default', '10.0.0.1:80', weight => 7);
    is($redis->registry->{'10.0.0.1:80'}{meta}{weight}, 7, 'changed');
    $redis->unregister('default', '10.0.0.1:80');
    is_deeply($redis->registry, {}, 'taken out');
};

# Nodes that say what they are told to.
sub talker {
    my (%data) = @_;
    my $locations = join '', map { qq{if (\$arg_ns = $_) { return 200 '{"data":[$data{$_}]}'; }\n} } sort keys %data;
    return RegistryTest->nginx(modules => [], workers => 1,
        server => "default_type application/json; location = /upstream/status { $locations return 404; }");
}

subtest 'what several nodes agree on' => sub {
    my $a = '{"addr":"a:1","weight":1,"max_conns":0,"enabled":true,"state":"up","connections":1}';
    my $b = '{"addr":"b:1","weight":2,"max_conns":9,"enabled":false,"state":"down","connections":0}';
    my $first = talker(all => "$a,$b", some => $a);
    my $second = talker(all => ($b =~ s/0\}/5}/r) . ",$a", some => $b);
    my $both = [ $first, $second ];
    is_deeply(same($both, 'all'), [ 'a:1 1 0 true up', 'b:1 2 9 false down' ], 'the same, in any order, whatever their counts');
    ok(same($both, 'all', expected => [ 'b:1 2 9 false down', 'a:1 1 0 true up' ]), 'and as it should be');
    ok(same($both, 'all', expected => sub { @{ $_[0] } == 2 }), 'or as a rule says');
    is_deeply(same($both, 'none'), [], 'a namespace that neither knows');
    my $said = '';
    no warnings 'redefine';
    local *Test::More::diag = sub { $said .= join '', @_ };
    ok(!same($both, 'some', timeout => 0.1), 'not the same');
    like($said, qr/node 1:\na:1 1 0 true up\nnode 2:\nb:1 2 9 false down/, 'and what each says');
    ok(!same($both, 'all', expected => [ 'a:1 1 0 true up' ], timeout => 0.1), 'the same, and not as it should be');
};

subtest 'a clock that is wrong' => sub {
    my $clock = RegistryTest->clock(3600);
    my $node = RegistryTest->nginx(modules => [], workers => 1, env => $clock->env, server => 'location / { return 200 $msec; }');
    my $off = sub { my $is = $node->get('/')->{body} - time; return abs($is - $_[0]) < 1.5 || diag("off by $is instead of $_[0]") && 0 };
    ok($off->(3600), 'an hour ahead');
    $clock->set(-3600);
    ok(wait_until(sub { abs($node->get('/')->{body} - time + 3600) < 1.5 }), 'an hour behind, while it runs');
    $clock->set(0);
    ok(wait_until(sub { abs($node->get('/')->{body} - time) < 1.5 }), 'and right');
    $node->log_is_clean;
    $clock->set(600);
    my $redis = RegistryTest->redis(env => $clock->env);
    ok(abs($redis->now - time - 600) < 1.5, 'of a Redis too') or diag($redis->now - time);
};

done_testing;
