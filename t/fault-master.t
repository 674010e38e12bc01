# The master dies in a reload, at each point of it: the old workers go on serving, the zone is
# whole, and nginx can be started again. And a reload while workers die with the lock.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my @backends = map { RegistryTest->backend(name => $_) } qw(a b);
my $node;

# The configuration: a size, the names of locations' namespaces, server lines.
sub configure {
    my ($size, $names, $statics, $check) = @_;
    $check = $check ? 'health_check type=tcp interval=50ms fails=1;' : '';
    my $locations = join '', map { "location /$_/ { registry_api main namespace=$_; }" } @$names;
    return (
        http => "registry main $size { heartbeat_ttl 1h; cleanup_interval 1h; $check }
            upstream backend { registry main; $statics }
            proxy_buffering off;",
        server => "location /upstream/ { registry_api main namespace=backend; } $locations
            location / { proxy_pass http://backend; add_header X-Worker \$pid; }",
    );
}
sub server { my ($weight) = @_; return 'server ' . $backends[1]->address . " weight=$weight;" }
my @BEFORE = ('512k', [qw(shop)], server(1) . 'server 127.0.0.9:7 down;');
my %AFTER = (
    # The zone stays: a namespace and a server line go, others come, one that was
    # registered by the API gets a line.
    same => [ '512k', [qw(office)], server(5) . 'server ' . $backends[0]->address . ';' ],
    larger => [ '1m', [qw(shop)], server(1) ],
);

# All that the zone has of servers, without counts.
sub picture {
    my $servers = servers($node);
    for my $server (values %$servers) { delete @$server{qw(connections local_connections requests fails time_since_heartbeat state health)} }
    return $servers;
}

# $checked: with health checks, of which the next configuration has none.
sub fresh {
    my ($checked) = @_;
    $node = RegistryTest->fault(workers => 2, configure(@BEFORE, $checked));
    api($node, 'add', { host => $backends[0]->host, port => $backends[0]->port, weight => 2, max_conns => 99 });
    api($node, 'add', { host => '127.0.0.9', port => 8, weight => 0 });
    wait_until(sub { servers($node)->{'127.0.0.9:8'}{state} eq 'unhealthy' }) or die "nobody is checked\n" if $checked;
    return;
}

sub master_dies_at {
    my ($point, $after) = @_;
    return subtest "$point, $after zone" => sub {
        fresh($point =~ /^checks/);
        my $before = picture();
        my $held = $node->held(6, 2, 0.5);
        my $count = map { @$_ } values %$held;
        my ($from, $master, @workers) = ($node->log_size, $node->pid, $node->workers);
        $node->set_conf(configure(@{ $AFTER{$after} }));
        $node->arm("$point:1:master");
        $node->signal('HUP');
        ok(wait_until(sub { !alive($master) }), 'the master dies');
        is(scalar(grep { alive($_) } @workers), 2, 'the workers live');
        is($node->get('/')->{status}, 200, 'and answer');
        # The last answer may be here before its worker has counted it off.
        wait_until(sub { $node->checked->{connections} == $count });
        $node->is_whole($count, 'the zone is whole, with all requests');
        my $retired = $node->checked->{retired};
        is($retired, $point eq 'succeed.retired' ? 1 : $retired, 'replaced only where all had moved') if $after eq 'larger';
        my $now = picture();
        if ($after eq 'larger') {
            is_deeply($now, $before, 'the servers are as they were');
            is($node->get('/shop/status')->{status}, 200, 'the namespaces as well');
        }
        else {
            is_deeply($now->{'127.0.0.9:8'}, $before->{'127.0.0.9:8'}, 'a server that the configuration does not know is as it was');
            ok(exists $now->{ $_->address }, 'one that it knows is there') for @backends;
            my $forgotten = $point =~ /^configure\.(?:forgotten|done)$/;
            is($node->get('/shop/status')->{status}, $forgotten ? 404 : 200,
                $forgotten ? 'a namespace that the configuration no longer names is gone' : 'a namespace is there until all else is done');
        }
        my $status = api($node, 'add', { host => '127.0.0.9', port => 10, weight => 0 })->{status};
        is($status, $retired ? 503 : 200, $retired ? 'a zone that was replaced takes no changes' : 'the API takes changes');
        is(scalar(grep { $node->ends_well($_) } map { @$_ } values %$held), $count, 'requests under way end well');
        ok(wait_until(sub { $node->checked->{connections} == 0 }), 'and are counted off');

        kill 'QUIT', @workers;
        ok(wait_until(sub { !grep { alive($_) } @workers }), 'workers without a master end when they are told to');
        ok($node->start, 'nginx starts again');
        is($node->get('/')->{status}, 200, 'with what the configuration says');
        $node->is_idle('in a whole zone');
        $node->log_is_clean;
        $node->quit;
    };
}

fresh();
my @points = $node->points_of('master');
$node->quit;
for my $point (@points) {
    master_dies_at($point, $point =~ /^succeed/ ? 'larger' : 'same');
}
master_dies_at('lock.release', 'larger');
master_dies_at('journal.half', 'same');

# A connection to the first worker, when no worker has anything more to do with others.
sub client_of_first {
    my $client = $node->client_of($node->workers);
    wait_until(sub { $node->checked->{connections} == 0 });
    return $client;
}

# A worker dies while the master stands still. Let go on, the master puts one in its place, which is
# to die as well, and reloads: it finds the lock as the dead have left it.
sub reload_after_death {
    my ($client) = @_;
    my ($victim) = $node->workers;
    kill 'STOP', $node->pid;
    $client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_until(sub { !alive($victim) }) or die "worker $victim lives\n";
    $node->signal('HUP');
    kill 'CONT', $node->pid;
    return;
}

subtest 'a reload while one worker after the other dies with the lock' => sub {
    for my $after (qw(same larger)) {
        fresh();
        my $client = client_of_first();
        $node->arm(join ',', ('lock.taken:1:worker') x 8);
        $node->set_conf(configure(@{ $AFTER{$after} }));
        reload_after_death($client);
        ok($node->died, "in the end workers come that live, $after zone");
        cmp_ok($node->points->{'repair.begun'}[0], '>', 0, 'the master has repaired the zone');
        ok(wait_until(sub { $node->get('/office/status')->{status} == ($after eq 'same' ? 200 : 404) }), 'and the configuration is the new one')
            if $after eq 'same';
        is($node->get('/')->{status}, 200, 'requests are answered');
        ok(exists servers($node)->{ $_->address }, 'no server is lost') for @backends;
        ok(wait_until(sub { !$node->old_workers }), 'no old worker stays');
        $node->is_idle('the zone is whole');
        ok($node->reload, 'the next reload');
        $node->is_idle('as well');
        $node->log_is_clean;
        $node->quit;
    }
};

subtest 'the master dies in the repair of what a worker left' => sub {
    fresh();
    my ($master, @workers) = ($node->pid, $node->workers);
    my $client = client_of_first();
    $node->arm('lock.taken:1:worker,lock.taken:1:worker,repair.server:1:master');
    reload_after_death($client);
    ok(wait_until(sub { !alive($master) }), 'it does');
    ok(wait_until(sub { $node->waiting == 0 }), 'and so do the worker and who came in its place');
    is($node->get('/')->{status}, 200, 'the worker that is left answers');
    $node->is_whole(0, 'it has repaired the zone');
    ok(exists servers($node)->{ $_->address }, 'no server is lost') for @backends;
    ok($node->kill_all && $node->start, 'nginx starts again');
    $node->is_idle('with a whole zone');
    # The second it did not live to see.
    $node->{killed} = 1;
    $node->log_is_clean;
};

done_testing;
