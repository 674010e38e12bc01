# The state file: what outlives all processes of nginx. Written within a second of a change,
# read at a cold start, and not touched by heartbeats.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my ($one, $two) = map { RegistryTest->backend(name => $_) } qw(a b);
my $SECOND = 1 * time_scale();

sub node {
    my (%opt) = @_;
    my $settings = $opt{settings} || 'heartbeat_ttl 1h; cleanup_interval 100ms;';
    my $file = $opt{file} || 'registry/main.json';
    return RegistryTest->nginx(
        workers => 2, %opt,
        http => "registry main 1m { $settings state_file $file; }
            upstream backend { registry main; " . ($opt{lines} || '') . ' }',
        server => 'location /upstream/ { registry_api main; }
            location / { proxy_pass http://backend; add_header X-Worker $pid; }',
    );
}
sub file { return $_[0]->dir . '/registry/main.json' }
sub saved { my ($node) = @_; return eval { JSON::PP->new->decode(slurp(file($node))) } }
# The servers in the file by namespace and address; {} when there is no file.
sub in_file {
    my $saved = saved($_[0]) or return {};
    return { map { ("$_->{namespace} $_->{addr}" => $_) } @{ $saved->{servers} } };
}
sub names { return join ',', sort keys %{ in_file($_[0]) } }
sub state_of { my ($node) = @_; my @s = stat file($node); return "@s[1, 7, 9]" }
# What a restart keeps of a server, of all namespaces.
sub kept {
    my ($node, @namespaces) = @_;
    my %kept;
    for my $ns (@namespaces) {
        my $servers = servers($node, $ns);
        for my $addr (keys %$servers) {
            $kept{"$ns $addr"} = { map { ($_ => $servers->{$addr}{$_}) }
                qw(weight max_conns enabled state created_at updated_at disabled_at disabled_reason) };
        }
    }
    return \%kept;
}

subtest 'a change is in the file within a second, whichever worker made it' => sub {
    my $node = node();
    ok(wait_until(sub { saved($node) }, $SECOND), 'the file is there soon after the start');
    is(names($node), '', 'with no server');
    my $in_time = sub {
        my ($what, $check) = @_;
        ok(wait_until($check, $SECOND), "$what is in the file");
    };
    api($node, 'add', { ns => 'backend', host => $one->host, port => $one->port, weight => 3 });
    $in_time->('a new server', sub { names($node) eq 'backend ' . $one->address });
    is(in_file($node)->{ 'backend ' . $one->address }{weight}, 3, 'with its weight');
    api($node, 'weight', { ns => 'backend', host => $one->host, port => $one->port, weight => 7 });
    $in_time->('a weight', sub { in_file($node)->{ 'backend ' . $one->address }{weight} == 7 });
    api($node, 'toggle', { ns => 'backend', host => $one->host, port => $one->port, action => 'disable' });
    $in_time->('a server switched off', sub { (in_file($node)->{ 'backend ' . $one->address }{disabled} || '') eq 'manual' });
    api($node, 'drain', { ns => 'backend', host => $one->host, port => $one->port });
    $in_time->('a drain', sub { in_file($node)->{ 'backend ' . $one->address }{draining} });
    api($node, 'add', { ns => 'shop', host => '127.0.0.9', port => $_ }) for 1 .. 20;
    $in_time->('each of many servers', sub { keys %{ in_file($node) } == 21 });
    api($node, 'remove', { ns => 'shop', host => '127.0.0.9', port => $_ }) for 1 .. 20;
    $in_time->('that they went', sub { keys %{ in_file($node) } == 1 });
    $node->log_is_clean;
};

subtest 'heartbeats alone cause no write' => sub {
    my $node = node();
    api($node, 'add', { ns => 'backend', host => $one->host, port => $one->port });
    ok(wait_until(sub { names($node) eq 'backend ' . $one->address }, $SECOND), 'a server is in the file');
    my $before = state_of($node);
    my $end = time + 1.5 * $SECOND;
    my $beats = 0;
    while (time < $end) {
        my $endpoint = $beats++ % 2 ? 'refresh' : 'add';
        is(api($node, $endpoint, { ns => 'backend', host => $one->host, port => $one->port })->{status}, 200)
            if $beats <= 2;
        api($node, $endpoint, { ns => 'backend', host => $one->host, port => $one->port });
        $node->get('/');
    }
    ok($beats > 20, "$beats heartbeats and requests");
    is(state_of($node), $before, 'the file is the same: inode, size and time');
    $node->log_is_clean;
};

subtest 'changes go together' => sub {
    my $node = node();
    ok(wait_until(sub { saved($node) }, $SECOND), 'the file is there');
    my (%inodes, $last);
    my $began = time;
    for my $n (1 .. 300) {
        api($node, 'add', { ns => 'backend', host => '127.0.0.9', port => $n });
        $inodes{ state_of($node) } = 1;
    }
    ok(wait_until(sub { $inodes{ state_of($node) } = 1; keys %{ in_file($node) } == 300 }, $SECOND), '300 servers are in the file');
    my $seconds = time - $began;
    my $most = 3 + $seconds / 0.4;
    ok(keys %inodes <= $most, keys(%inodes) . " writes in $seconds s, at most $most");
    $node->log_is_clean;
};

subtest 'a silence, and its end, cause no write either' => sub {
    my $node = node(settings => 'heartbeat_ttl 300ms; cleanup_interval 50ms;');
    api($node, 'add', { ns => 'backend', host => $one->host, port => $one->port });
    ok(wait_until(sub { names($node) eq 'backend ' . $one->address }, $SECOND), 'a server is in the file');
    my $before = state_of($node);
    ok(wait_until(sub { (servers($node, 'backend')->{ $one->address }{disabled_reason} || '') eq 'heartbeat_timeout' }), 'it is silent, and switched off for it');
    api($node, 'refresh', { ns => 'backend', host => $one->host, port => $one->port });
    is(servers($node, 'backend')->{ $one->address }{state}, 'up', 'and comes back');
    sleep 0.7 * time_scale();    # that nothing happens can only be waited for
    is(state_of($node), $before, 'the file is the same');
    $node->log_is_clean;
};

for my $how ('QUIT', 'TERM', 'KILL') {
    subtest "all is there again after a restart ($how)" => sub {
        my $lines = 'server ' . $two->address . ' weight=2;';
        my $node = node(lines => $lines);
        my $on = sub { my ($endpoint, %of) = @_; is(api($node, $endpoint, { ns => 'backend', host => '127.0.0.9', %of })->{status}, 200, "$endpoint $of{port}") };
        $on->('add', port => 1, weight => 4, max_conns => 0);
        $on->('add', port => 2, weight => 1, max_conns => 9);
        $on->('add', port => 3, weight => 0);
        $on->('add', port => 4);
        $on->('toggle', port => 2, action => 'disable');
        $on->('drain', port => 4);
        $on->('toggle', host => $two->host, port => $two->port, action => 'disable');
        api($node, 'add', { ns => 'shop', host => '::1', port => 5 });
        my $before = kept($node, 'backend', 'shop');
        is(scalar(keys %$before), 6, 'six servers in two namespaces');
        if ($how eq 'KILL') {
            ok(wait_until(sub { keys %{ in_file($node) } == 6 && in_file($node)->{ 'backend ' . $two->address }{disabled} }, $SECOND), 'within a second they are in the file');
            $node->kill_all;
        }
        else {
            # At once: what is unsaved is written at the end.
            ok($how eq 'QUIT' ? $node->quit : $node->stop, 'nginx ends');
        }
        $node->start;
        is_deeply(kept($node, 'backend', 'shop'), $before, 'the same servers, as they were');
        ok($node->grep_log(qr/\[notice\].* registry "main": 6 servers read from state file "\Q@{[file($node)]}\E"/), 'the log says so');
        $node->log_is_clean;
    };
}

subtest 'a server from the file has one heartbeat_ttl to show up' => sub {
    my $ttl = 1 * time_scale();
    my $node = node(settings => "heartbeat_ttl ${ttl}s; cleanup_interval 50ms; on_expire remove;");
    api($node, 'add', { ns => 'backend', host => $one->host, port => $one->port });
    $node->quit;
    sleep 1.2 * $ttl;    # nginx is down for longer than the TTL
    $node->start;
    my $began = time;
    is($node->get('/')->{headers}{'x-backend'}, 'a', 'it gets requests at once');
    ok(wait_until(sub { status($node, 'backend')->{total} == 0 }, 3 * $ttl), 'silent on, it goes');
    my $took = time - $began;
    ok($took > 0.5 * $ttl, "after a TTL of its own ($took s)");
    ok(wait_until(sub { names($node) eq '' }, $SECOND), 'from the file too');
    $node->log_is_clean;
};

subtest 'without a master it works as well' => sub {
    my $node = node(master => 0);
    api($node, 'add', { ns => 'backend', host => $one->host, port => $one->port });
    ok(wait_until(sub { names($node) eq 'backend ' . $one->address }, $SECOND), 'a server is in the file within a second');
    api($node, 'add', { ns => 'backend', host => $two->host, port => $two->port });
    ok($node->quit, 'quit at once');
    $node->start;
    is(status($node, 'backend')->{total}, 2, 'both are there');
    api($node, 'remove', { ns => 'backend', host => $one->host, port => $one->port });
    $node->stop;
    $node->start;
    is(status($node, 'backend')->{total}, 1, 'and after TERM what there was then');
    $node->log_is_clean;
};

subtest 'ten thousand servers' => sub {
    my $node = RegistryTest->nginx(workers => 2,
        http => 'registry main 16m { heartbeat_ttl 1h; state_file main.json; } upstream backend { registry main; }',
        server => 'location /upstream/ { registry_api main; } keepalive_requests 100000;');
    my $client = $node->client;
    for my $batch (0 .. 99) {
        $client->send(join '', map {
            my $n = 100 * $batch + $_;
            my $body = "ns=backend&port=80&host=10.1." . int($n / 250) . '.' . (1 + $n % 250);
            "POST /upstream/add HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: " . length($body) . "\r\n\r\n$body"
        } 0 .. 99);
        $client->response->{status} == 200 or die for 1 .. 100;
    }
    my $path = $node->dir . '/main.json';
    ok(wait_until(sub { slurp($path) =~ /"count":10000,/ }, 2 * $SECOND), 'are in the file');
    $node->kill_all;
    $node->start;
    is(status($node, 'backend')->{total}, 10000, 'and come back');
    $node->log_is_clean;
};

done_testing;
