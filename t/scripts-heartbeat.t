# scripts/heartbeat_client.sh against a real node: it keeps a server registered, whatever
# happens, and takes it out at the end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(end_process);

require "$FindBin::Bin/heartbeat.pl";

our ($node, $backend, $TTL, $INTERVAL);
$node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 512k { heartbeat_ttl ' . 1000 * $TTL . 'ms; cleanup_interval 50ms; on_expire remove; }
        upstream backend { registry main; }
        upstream fixed { registry main; server 127.0.0.9:9; }',
    server => 'location /upstream/ { registry_api main; }
        location / { proxy_pass http://backend; }',
);

subtest 'it registers, keeps alive and deregisters' => sub {
    my $client = client({ WEIGHT => 3, MAX_CONNS => 7 });
    ok(registered(), 'a server that is not known is registered');
    is(server()->{weight} . ' ' . server()->{max_conns}, '3 7', 'with its weight and max_conns');
    ok(says($client, qr/registered 127|registered \(this host\):\d+ in backend/), 'which it says');
    is($node->get('/')->{headers}{'x-backend'}, 'a', 'it takes requests');
    my $created = server()->{created_at};
    my @silence = map { sleep $TTL / 4; server()->{time_since_heartbeat} } 1 .. 8;
    is(scalar(grep { $_ > $TTL } @silence), 0, 'over two TTLs it never is silent for one') or diag("@silence");
    is(server()->{created_at}, $created, 'nor was it registered anew');
    is(stop($client), 0, 'told to stop it exits with 0');
    ok(!server(), 'and the server is out');
    like(said($client), qr/got TERM, deregistering.*\n.*deregistered\n\z/, 'as it says');
};


subtest 'told by INT it does the same' => sub {
    my $client = client();
    ok(registered(), 'registered');
    is(stop($client, 'INT'), 0, 'exits with 0');
    ok(!server(), 'and the server is out');
};


subtest 'a server that the registry has lost is registered again' => sub {
    my $client = client();
    ok(registered(), 'registered');
    api($node, 'remove', { ns => 'backend', host => '127.0.0.1', port => $backend->port });
    ok(registered(), 'removed by hand it comes back');
    kill 'STOP', -$client->{pid};
    ok(wait_until(sub { !server() }), 'silent for too long it is removed');
    kill 'CONT', -$client->{pid};
    ok(registered(), 'and comes back when the client goes on');
    is(stop($client), 0, 'it stops');
};


subtest 'a server disabled by hand stays disabled' => sub {
    my $client = client();
    ok(registered(), 'registered');
    api($node, 'toggle', { ns => 'backend', host => '127.0.0.1', port => $backend->port, action => 'disable' });
    sleep 4 * $INTERVAL;
    is(server()->{enabled} . ' ' . (server()->{time_since_heartbeat} < $TTL), '0 1', 'heartbeats go on and change nothing of it');
    is(stop($client), 0, 'it stops');
    ok(!server(), 'and the server is out');
};


subtest 'killed outright, the client leaves the rest to the TTL' => sub {
    my $client = client();
    ok(registered(), 'registered');
    end_process($client->{pid}, 'KILL', 5);
    ok(server(), 'the server is there still');
    ok(wait_until(sub { !server() }), 'until it expires');
};


subtest 'while nginx is away it tries again, less and less often' => sub {
    $node->quit;
    my $client = client({ INTERVAL => 2 });
    ok(says($client, qr/failed \(3\)/), 'started before nginx it goes on trying');
    my @delays = said($client) =~ /failed \(\d+\): .*(?:refused|connect).*; next try in ([\d.]+)s/ig;
    is(scalar(@delays) >= 3, 1, 'says each time why, and when it will again');
    ok($delays[0] <= 0.5 && $delays[1] <= 1 && $delays[2] <= 2 && $delays[2] >= $delays[0], 'later and later, never longer than INTERVAL')
        or diag("@delays");
    $node->start;
    ok(registered(), 'when nginx is there the server is registered');
    $node->quit;
    ok(says($client, qr/registered .*failed \(1\)/s), 'when nginx goes it tries again');
    $node->start;    # an empty registry, after a restart
    ok(registered(), 'and registers in one that has forgotten it');
    is(stop($client), 0, 'it stops');
};


subtest 'stopped while nginx is away it says so and does not wait for ever' => sub {
    my $client = client();
    ok(registered(), 'registered');
    $node->quit;
    ok(says($client, qr/failed \(1\)/), 'nginx goes');
    is(stop($client), 1, 'exit code 1');
    like(said($client), qr/could not deregister: .*; it will expire by itself/, 'and why');
    $node->start;
};


subtest 'a static member cannot be deregistered, and that is no failure' => sub {
    my $client = client({ HOST => '127.0.0.9', PORT => 9, NAMESPACE => 'fixed' });
    ok(says($client, qr/registered already/), 'heartbeats of a member are accepted');
    is(stop($client), 0, 'exit code 0');
    like(said($client), qr/it stays: /, 'it stays');
    is(status($node, 'fixed')->{total}, 1, 'it is there');
};


$node->log_is_clean;
done_testing;
