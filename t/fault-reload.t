# Old workers that are killed, and zones that are replaced or gone, while requests are under way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
my $node;

# A size, or none: then there is neither registry nor upstream, only an endpoint to ask by.
sub configure {
    my ($size) = @_;
    my $main = $size ? "registry main $size { heartbeat_ttl 1h; cleanup_interval 50ms; } upstream backend { registry main; keepalive 4; }" : '';
    my $server = $size ? 'location /upstream/ { registry_api main namespace=backend; } location / { proxy_pass http://backend; add_header X-Worker $pid; }' : 'location / { return 204; }';
    return (
        http => "registry spare 128k { cleanup_interval 50ms; } $main proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;",
        server => "location /spare/ { registry_api spare; } $server",
    );
}
sub fresh {
    my ($size) = @_;
    $node = RegistryTest->fault(workers => 2, configure($size));
    add();
    return;
}
sub add { api($node, 'add', { host => $_->host, port => $_->port, max_conns => 0 }) for @backends; return }
sub count { my ($held, @pids) = @_; my $n = 0; $n += @{ $held->{$_} || [] } for @pids; return $n }
# A connection that an old worker goes on reading from.
sub begun {
    my ($pid) = @_;
    my $client = $node->client_of($pid);
    $client->send("GET /upstream/che");
    return $client;
}
sub rest { my ($client) = @_; $client->send("ck HTTP/1.1\r\nHost: x\r\n\r\n"); return $client->response->{json}{data} }

subtest 'ten reloads in a row under load, each with an old worker killed' => sub {
    fresh('512k');
    my $load = load_start(conns => 8, url => [ map { $node->url("/?delay=$_") } 0, 0.01, 0.05 ]);
    my (%held, $wrong);
    for my $i (1 .. 10) {
        my $more = $node->held(6, 2, 60);
        push @{ $held{$_} }, @{ $more->{$_} } for keys %$more;
        $node->reload(wait => 'new') or fail("reload $i");
        my ($victim) = grep { $held{$_} } $node->old_workers;
        $node->kill_worker($victim, 'KILL', respawn => 0);
        delete $held{$victim};
        my $wanted = count(\%held, keys %held);
        my $data;
        # Within a cleanup_interval; besides these there are the requests of the load.
        my $in_time = wait_until(sub { $data = $node->checked; $data->{connections} <= $wanted + 8 }, time_scale());
        $wrong++ if !$in_time || $data->{connections} < $wanted || @{ $data->{problems} };
    }
    is($wrong, undef, 'each time only the requests of the living stay counted, and the zone is whole');
    my $sum = load_stop($load);
    is_deeply([ keys %{ $sum->{status} } ], [200], 'what was answered was answered well') or diag(explain($sum));
    cmp_ok($sum->{failed}, '<=', 80, 'no requests fail but those of the killed');
    $node->is_whole(count(\%held, $node->old_workers), 'the requests of all old workers are counted');
    $_->close for map { @$_ } values %held;
    ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
    $node->is_idle('and nothing is left of any request');
    $node->log_is_clean;
};

for my $case ([ 'a larger', '512k', '1m' ], [ 'a smaller', '1m', '256k' ]) {
    my ($what, $old, $new) = @$case;
    subtest "$what zone while old workers hold the other, one of which is killed" => sub {
        fresh($old);
        my $killed = $node->held(4, 2, 60);
        my $ending = $node->held(4, 2, 1.5);
        my ($victim, $other) = $node->workers;
        my $ask = begun($other);
        $node->set_conf(configure($new));
        ok($node->reload(wait => 'new'), 'a reload');
        $node->is_whole(0, 'in the new zone no request is counted');
        my $here = $node->held(3, 1, 60);
        $node->kill_worker($victim, 'KILL', respawn => 0);
        $node->is_whole(count($here, keys %$here), 'but those of its own, whoever dies');
        is(scalar(grep { $node->ends_well($_) } @{ $ending->{$other} }), count($ending, $other), 'the requests of an old worker that lives end well');
        my $data = rest($ask);
        is_deeply($data->{problems}, [], 'the old zone is whole');
        is($data->{retired} ? 'true' : 'false', 'true', 'and knows that it was replaced');
        $_->close for map { @$_ } map { values %$_ } $killed, $here;
        ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
        $node->is_idle('nothing is left of any request');
        is(status($node)->{total}, 2, 'both servers are there');
        $node->log_is_clean;
    };
}

subtest 'a zone that is gone from the configuration, with its upstream' => sub {
    fresh('512k');
    my $killed = $node->held(4, 2, 60);
    my $ending = $node->held(4, 2, 1.5);
    my ($victim, $other) = $node->workers;
    my $ask = begun($other);
    $node->set_conf(configure(undef));
    ok($node->reload(wait => 'new'), 'a reload without it');
    is($node->get('/')->{status}, 204, 'new workers know nothing of it');
    $node->kill_worker($victim, 'KILL', respawn => 0);
    is(scalar(grep { $node->ends_well($_) } @{ $ending->{$other} }), count($ending, $other), 'the requests of an old worker that lives end well');
    $_->close for map { @$_ } values %$killed;
    is_deeply(rest($ask)->{problems}, [], 'its zone is whole');
    ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
    $node->is_idle('the zones that stay are whole', '/spare/');
    $node->set_conf(configure('512k'));
    ok($node->reload, 'a reload brings it again');
    $node->is_whole(0, 'empty');
    add();
    is($node->get('/')->{status}, 200, 'and it works');
    $node->is_idle('nothing is left of any request');
    $node->log_is_clean;
};

subtest 'the endpoints of this build are in no other' => sub {
    my $plain = RegistryTest->nginx(http => 'registry main 128k { }', server => 'location /upstream/ { registry_api main; }');
    for my $endpoint (qw(check fault)) {
        my $response = $plain->get("/upstream/$endpoint");
        is($response->{status}, 404, $endpoint);
        like($response->{body}, qr/Unknown endpoint: $endpoint/, 'is unknown');
        unlike($response->{body}, qr/there are .*\b$endpoint\b/, 'and not told of');
    }
    my $module = slurp($ENV{TEST_NGINX_LOAD_MODULES} =~ /(\S+)/ ? $1 : '');
    cmp_ok(length $module, '>', 100_000, 'the module as it is used');
    unlike($module, qr/journal\.half/, 'has no marked points');
    $plain->log_is_clean;
};

done_testing;
