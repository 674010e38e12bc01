# A reload (SIGHUP) under load keeps servers and counts, and fails no request.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $node = RegistryTest->nginx(workers => 2);
my %DEFAULTS = (registry => 'heartbeat_ttl 1h; cleanup_interval 50ms;', size => '1m', upstream => '', location => '');

# Writes a configuration with these parts other than the default.
sub configure {
    my %part = (%DEFAULTS, @_);
    $node->set_conf(
        http => "registry main $part{size} { $part{registry} }
            upstream backend { registry main; $part{upstream} }
            proxy_http_version 1.1; proxy_set_header Connection '';",
        server => "location /upstream/ { registry_api main namespace=backend; }
            location /elsewhere/ { registry_api main namespace=elsewhere; }
            location / { proxy_pass http://backend; add_header X-Worker \$pid; $part{location} }",
    );
}

configure();
ok($node->reload, 'a reload brings the registry');
my ($a, $b) = map { RegistryTest->backend(name => $_) } qw(a b);

sub add { my ($backend, %more) = @_; return api($node, 'add', { host => $backend->host, port => $backend->port, %more }) }
sub count { my ($backend) = @_; return servers($node)->{ $backend->address }{connections} }
sub idle { return wait_until(sub { connections($node) == 0 }, 10 * time_scale()) }
# Requests that stay on their server for so many seconds.
sub slow {
    my ($count, $seconds) = @_;
    $seconds *= time_scale();
    return map {
        my $client = $node->client;
        $client->send("GET /?delay=$seconds HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        $client;
    } 1 .. $count;
}
# All that a server is, without what goes on changing.
sub picture {
    my $servers = servers($node);
    for my $server (values %$servers) { delete @$server{qw(time_since_heartbeat connections requests)} }
    return $servers;
}

subtest 'servers are kept as they are' => sub {
    add($a, weight => 3, max_conns => 77);
    add($b);
    api($node, 'toggle', { host => $b->host, port => $b->port, action => 'disable' });
    $node->post("/elsewhere/$_", body => form({ host => '127.0.0.9', port => 9 })) for qw(add drain);
    $node->get('/') for 1 .. 3;
    my ($servers, $from) = (picture(), $node->log_size);
    my $elsewhere = $node->get('/elsewhere/status')->{json}{data}[0];
    ok($node->reload, 'a reload');
    is_deeply(picture(), $servers, 'changes nothing of them');
    is(servers($node)->{ $a->address }{requests}, 3, 'nor the number of their requests');
    my $now = $node->get('/elsewhere/status')->{json}{data}[0];
    delete $_->{time_since_heartbeat} for $elsewhere, $now;
    is_deeply($now, $elsewhere, 'those of other namespaces stay as well');
    is(scalar($node->grep_log(qr/server .* (?:added|removed|enabled|disabled|back|moved)/, $from)), 0,
        'and the log says nothing of them');
    is($node->get('/')->{headers}{'x-backend'}, 'a', 'the enabled one takes the requests');
    api($node, 'remove', { host => $_->host, port => $_->port }) for $a, $b;
};

subtest 'old and new workers count into the same zone' => sub {
    add($a);
    my @old = slow(4, 1.2);
    ok(wait_until(sub { connections($node) == 4 }), 'four slow requests in the old workers');
    ok($node->reload(wait => 'new'), 'a reload');
    ok(scalar($node->old_workers), 'an old worker is there still');
    is(count($a), 4, 'its requests are counted');
    add($b);
    my @new = slow(4, 2);
    ok(wait_until(sub { connections($node) == 8 }), 'four more in the new workers');
    is(count($b), 4, 'they all chose the server without requests: new workers go by the counts of the old');
    is($_->response->{status}, 200, 'the old request is answered') for @old;
    ok(wait_until(sub { count($a) == 0 }), 'and counted off by the old worker');
    is(count($b), 4, 'the new requests are still counted');
    ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
    is(count($b), 4, 'and take nothing along');
    is($_->response->{status}, 200, 'the new request is answered') for @new;
    ok(idle(), 'and no request is left');
};

subtest 'requests go on while the configuration is reloaded' => sub {
    my $c = RegistryTest->backend(name => 'c');
    my @rounds = (
        [ 'the same configuration' ],
        [ 'another TTL and interval', registry => 'heartbeat_ttl 30m; cleanup_interval 20ms; on_expire remove;' ],
        [ 'round robin', upstream => 'registry_balance round_robin;' ],
        [ 'kept connections', upstream => 'keepalive 8;' ],
        [ 'fewer kept connections and round robin', upstream => 'registry_balance round_robin; keepalive 1;' ],
        [ 'a static member', upstream => 'server ' . $c->address . ' weight=2;' ],
        [ 'it is a backup', upstream => 'server ' . $c->address . ' backup; keepalive 8;' ],
        [ 'no members', location => 'proxy_buffering off;' ],
    );
    add($_) for $a, $b;
    my $load = load_start(conns => 12, url => [ map { $node->url("/?delay=$_") } 0, 0.01, 0.3 ]);
    for my $round (@rounds) {
        my ($what, @parts) = @$round;
        configure(@parts);
        ok($node->reload(wait => 'new'), "reload: $what");
        sleep 0.1;
    }
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'every request was answered')
        or diag(explain($sum)), $node->diag_log;
    ok($sum->{requests} > 100 / time_scale(), 'and there were many');
    ok(idle(), 'no request is left in the counts');
    ok(wait_until(sub { !$node->old_workers }), 'no old worker stays behind');
    is_deeply([ sort keys %{ servers($node) } ], [ sort map { $_->address } $a, $b ], 'and the servers are those of before');
};

subtest 'ten reloads in a row' => sub {
    configure(upstream => 'keepalive 4;');
    $node->reload;
    add($_) for $a, $b;
    api($node, 'reset', {});
    my $load = load_start(conns => 10, url => [ map { $node->url("/?delay=$_") } 0, 0.02, 0.2 ]);
    my @counted;
    for my $i (1 .. 10) {
        $node->reload(wait => 'new') or fail("reload $i");
        push @counted, connections($node);
    }
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'every request was answered')
        or diag(explain($sum)), $node->diag_log;
    is(scalar(grep { $_ > 10 } @counted), 0, 'never more counted than were under way') or diag("@counted");
    ok(idle(), 'no request is left in the counts');
    my $requests = 0;
    $requests += $_->{requests} for @{ status($node)->{data} };
    is($requests, $sum->{requests}, 'each was counted once, by workers old and new');
};

subtest 'signals that come faster than workers end' => sub {
    my $load = load_start(conns => 6, url => $node->url('/?delay=0.05'));
    for (1 .. 8) {
        $node->signal('HUP');
        sleep 0.03;
    }
    ok($node->reload, 'and a last reload');
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], 'every request was answered')
        or diag(explain($sum));
    ok(idle(), 'no request is left in the counts');
};

$node->log_is_clean;
done_testing;
