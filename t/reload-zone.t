# A reload that gives the zone another size, another module file, or none at all.

use strict;
use warnings;

use File::Copy ();
use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $node = RegistryTest->nginx(workers => 2);
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);
my $DEFAULT_RULES = 'heartbeat_ttl 1h; cleanup_interval 50ms;';

# The registry with a size and rules; without a size none.
sub configure {
    my ($size, %opt) = @_;
    my $rules = $opt{rules} || $DEFAULT_RULES;
    my $statics = $opt{statics} || '';
    $node->set_conf(
        http => $size ? "registry main $size { $rules } upstream backend { registry main; $statics }" : '',
        server => $size
            ? 'location /upstream/ { registry_api main namespace=backend; }
               location /shop/ { registry_api main namespace=shop; }
               location / { proxy_pass http://backend; add_header X-Worker $pid always; }'
            : 'location / { return 200 "no registry\n"; }',
    );
    return $node;
}
sub add { my ($backend, %more) = @_; return api($node, 'add', { host => $backend->host, port => $backend->port, %more }) }
sub idle { return wait_until(sub { connections($node) == 0 }, 10 * time_scale()) }
sub slow {
    my ($count, $query) = @_;
    return map {
        my $client = $node->client;
        $client->send("GET /?$query HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        $client;
    } 1 .. $count;
}
sub picture {
    my $servers = servers($node);
    for my $server (values %$servers) { delete @$server{qw(time_since_heartbeat connections local_connections requests)} }
    return $servers;
}
# A connection on which a request to the API has begun: nginx keeps it open over a reload,
# so that the rest of it is handled by a worker of the old configuration.
sub begun {
    my ($endpoint, $fields) = @_;
    my $client = $node->client;
    my $body = form($fields);
    my $request = "POST /upstream/$endpoint HTTP/1.1\r\nHost: x\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
    $client->send(substr $request, 0, 20, '');
    return [ $client, $request ];
}
sub rest {
    my ($client, $rest) = @{ $_[0] };
    $client->send($rest);
    return $client->response;
}

configure('512k')->reload or die;
my $from;

for my $size ('1m', '256k') {
    my $what = $size eq '1m' ? 'a larger' : 'a smaller';
    subtest "a reload with $what size takes the servers along" => sub {
        add($a, weight => 3, max_conns => 50);
        add($b, weight => 2);
        api($node, 'toggle', { host => $b->host, port => $b->port, action => 'disable' });
        $node->post("/shop/$_", body => form({ host => '127.0.0.9', port => 9 })) for qw(add drain);
        $node->get('/') for 1 .. 5;
        my $before = picture();
        my $requests = servers($node)->{ $a->address }{requests};
        my $heard = servers($node)->{ $a->address }{time_since_heartbeat};
        $from = $node->log_size;
        ok(configure($size)->reload, 'a reload');
        is_deeply(picture(), $before, 'servers are as they were');
        my $server = servers($node)->{ $a->address };
        is($server->{requests}, $requests, 'with the number of their requests');
        ok($server->{time_since_heartbeat} >= $heard, 'and the length of their silence');
        is($node->get('/shop/status')->{json}{data}[0]{state}, 'draining', 'in all namespaces');
        is($node->get('/')->{headers}{'x-backend'}, 'a', 'requests go on');
        is(scalar($node->grep_log(qr/ \[notice\] .*registry "main": 3 servers moved to the new zone/, $from)), 1, 'the log tells of it');
        is(scalar($node->grep_log(qr/server \S+ (?:added|removed|enabled|disabled|back)/, $from)), 0, 'and of nothing else');
        is($node->post('/shop/remove', body => form({ host => '127.0.0.9', port => 9 }))->{status}, 200, 'the new zone can be changed');
        api($node, 'remove', { host => $_->host, port => $_->port }) for $a, $b;
        is(status($node)->{total}, 0, 'down to the last server');
    };
}

subtest 'requests of old workers end well after a change of size' => sub {
    my $dead = RegistryTest->backend(name => 'dead');
    my $served = $a->stats->{requests};
    add($_) for $dead, $a;
    my @slow = slow(6, 'delay=1.5');
    ok(wait_until(sub { $dead->stats->{active} == 3 && $a->stats->{active} == 3 }), 'slow requests on two servers');

    ok(configure('1m')->reload(wait => 'new'), 'a reload');
    is(connections($node), 0, 'in the new zone no request is counted');
    is($node->get('/')->{status}, 200, 'and new ones are answered');
    $dead->kill;
    is($_->response->{headers}{'x-backend'}, 'a', 'a slow request is answered, be it by another server') for @slow;
    ok($a->stats->{requests} >= $served + 6, 'the one that lives');
    ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
    ok(idle(), 'and leave no count behind');
    api($node, 'remove', { host => $_->host, port => $_->port }) for $a, $dead;
};

subtest 'time does not take the servers from old workers after a change of size' => sub {
    my $ttl = 'heartbeat_ttl ' . 500 * time_scale() . 'ms; cleanup_interval 1h;';
    configure('512k', rules => $ttl)->reload or die;
    my $dead = RegistryTest->backend(name => 'dead');
    add($_) for $dead, $a;
    my @slow = slow(2, 'delay=30');
    ok(wait_until(sub { $dead->stats->{active} == 1 && $a->stats->{active} == 1 }), 'slow requests on two servers');
    ok(configure('1m', rules => $ttl)->reload(wait => 'new'), 'a reload');
    for (1 .. 4) {
        sleep 0.2 * time_scale();
        is(add($a)->{status}, 200, 'a server sends heartbeats, which new workers take');
    }
    $dead->kill;
    ok(wait_until(sub { $a->stats->{active} == 2 }), 'the old worker passes on to it the request of one that dies')
        or diag(join "\n", $node->grep_log(qr/no eligible/));
    $_->close for @slow;
    ok(wait_until(sub { !$node->old_workers }), 'the old worker goes');
    api($node, 'remove', { host => $_->host, port => $_->port }) for $a, $dead;
};

subtest 'a change of size under load fails no request' => sub {
    configure('512k')->reload or die;
    add($_) for $a, $b;
    my $load = load_start(conns => 10, url => [ map { $node->url("/?delay=$_") } 0, 0.01, 0.2 ]);
    for my $size (qw(1m 256k 2m 512k)) {
        ok(configure($size)->reload(wait => 'new'), "reload with $size");
        sleep 0.1;
    }
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'every request was answered')
        or diag(explain($sum)), $node->diag_log;
    ok(idle(), 'no request is left in the counts');
    ok(wait_until(sub { !$node->old_workers }), 'no old worker stays behind');
};

subtest 'no change made through an old worker is lost without a word' => sub {
    my %new = (host => '127.0.0.9');
    for my $case ([ '512k', 'the same size' ], [ '1m', 'another size' ]) {
        my ($size, $what) = @$case;
        my @begun = (
            map({ begun(add => { %new, port => $_ }) } 1 .. 4),
            begun(toggle => { host => $a->host, port => $a->port, action => 'disable' }),
            begun(remove => { host => $b->host, port => $b->port }),
            begun(reset => {}), begun(cleanup => {}),
        );
        sleep 0.1;    # workers have read the beginnings
        configure($size)->reload(wait => 'new') or die;
        my @replies = map { rest($_) } @begun;
        my @status = map { $_->{status} } @replies;
        is(scalar(grep { $_ != 200 && $_ != 503 } @status), 0, "a reload with $what: 200 or 503") or diag("@status");
        is("@status", join(' ', (200) x 8), 'and 200 in a zone that is kept') if $size eq '512k';
        like($replies[0]{json}{message}, qr/reload/, '503 says why') if $status[0] == 503;
        my $servers = servers($node);
        for my $port (1 .. 4) {
            is(exists $servers->{"127.0.0.9:$port"} ? 200 : 503, $status[ $port - 1 ], "server $port is there when add said so");
        }
        is($servers->{ $a->address }{enabled} ? 503 : 200, $status[4], 'toggle has worked when it said so');
        is($servers->{ $b->address } ? 503 : 200, $status[5], 'so has remove');
        ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
        api($node, 'remove', { %new, port => $_ }) for 1 .. 4;
        add($b);
        api($node, 'toggle', { host => $a->host, port => $a->port, action => 'enable' });
    }
};

subtest 'too small for all servers: the log says so, those that have room stay' => sub {
    configure('1m')->reload or die;
    my $client = $node->client;
    my $count = 400;
    $client->post('/shop/add', body => form({ host => '127.0.0.9', port => $_ })) for 1 .. $count;
    is($node->get('/shop/status')->{json}{total}, $count, "$count servers");
    $from = $node->log_size;
    ok(configure('128k')->reload, 'a reload with the smallest size');
    like($node->wait_log(qr/registry "main": .*(?:full|room)/i, 5, $from), qr/\[(?:warn|error)\]/, 'the log says that it is full');
    my $left = $node->get('/shop/status')->{json}{total};
    ok($left > 50 && $left < $count, 'some of them had room') or diag($left);
    is($node->get('/')->{status}, 200, 'requests go on');
    $node->post('/shop/remove', body => form({ host => '127.0.0.9', port => $_ })) for 1 .. $count;
};

subtest 'a zone that is removed takes its servers with it' => sub {
    configure('512k')->reload or die;
    add($_) for $a, $b;
    my @slow = slow(3, 'delay=0.8');
    ok(wait_until(sub { connections($node) == 3 }), 'three slow requests');
    ok(configure(undef)->reload(wait => 'new'), 'a reload without the registry');
    is($node->get('/')->{body}, "no registry\n", 'new workers know none');
    is($_->response->{status}, 200, 'the old workers answer what they have') for @slow;
    ok(wait_until(sub { !$node->old_workers }), 'and go');

    ok(configure('512k')->reload, 'a reload with the registry');
    is(status($node)->{total}, 0, 'brings an empty one');
    add($a);
    is($node->get('/')->{headers}{'x-backend'}, 'a', 'which works');
    ok(idle(), 'without old counts');
    ok(configure(undef)->reload && configure('512k', statics => 'server ' . $b->address . ';')->reload, 'removed and brought again');
    is($node->get('/')->{headers}{'x-backend'}, 'b', 'with a static member');
};

subtest 'another module file: the servers move to its zone' => sub {
    configure('512k')->reload or die;
    add($a, weight => 3);
    add($b);
    my $before = picture();
    my @original = @{ $node->{modules} };
    my ($registry) = grep { /registry|\.so$/ } @original;
    my $load = load_start(conns => 6, url => [ map { $node->url("/?delay=$_") } 0, 0.02, 0.2 ]);
    for my $name (qw(copy.so second.so)) {
        my $copy = $node->dir . "/$name";
        File::Copy::copy($registry, $copy) or die "copy: $!";
        $from = $node->log_size;
        $node->set_conf(modules => [ map { $_ eq $registry ? $copy : $_ } @original ]);
        ok($node->reload(wait => 'new'), "a reload with the module from $name");
        is_deeply(picture(), $before, 'servers are as they were');
        is(scalar($node->grep_log(qr/2 servers moved to the new zone/, $from)), 1, 'the log tells of it');
        sleep 0.1;
    }
    $node->set_conf(modules => \@original);
    ok($node->reload(wait => 'new'), 'and back');
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'every request was answered')
        or diag(explain($sum)), $node->diag_log;
    ok(idle(), 'no request is left in the counts');
    ok(wait_until(sub { !$node->old_workers }), 'no old worker stays behind');
    is(add($a)->{json}{data}{weight}, 3, 'and the API knows the servers');
};

$node->log_is_clean;
done_testing;
