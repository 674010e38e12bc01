# Kept connections and the life of worker processes: they hold up no shutdown and no reload,
# and make room when connections run short.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my $a = NumberedBackend->new(name => 'a');
my $HTTP = 'registry main 256k { } upstream a { registry main; registry_keepalive 8; server ' . $a->address . '; }';
my $SERVER = q{
    location /upstream/ { registry_api main; }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / { proxy_pass http://a; }
};
sub node { return RegistryTest->nginx(workers => 1, http => $HTTP, server => $SERVER, @_) }
sub begin {
    my ($node, $path) = @_;
    my $client = $node->client;
    $client->send("GET $path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    return $client;
}
my $SOON = 1 + 0.2 * time_scale();

subtest 'QUIT' => sub {
    my $node = node(workers => 2);
    parallel(8, 80, $node->url('/?delay=0.01'), keepalive => 0);
    cmp_ok($a->stats->{open}, '>', 0, 'connections are kept');
    my $start = time;
    ok($node->quit, 'it ends');
    cmp_ok(time - $start, '<', $SOON, 'at once');
    is(open_at($a, 0), 0, 'they are closed');
    is(scalar($node->grep_log(qr/open socket|aborting/)), 0, 'and none was forgotten');
    $node->log_is_clean;

    $node = node();
    is($node->get('/')->{status}, 200, 'another');
    my $client = begin($node, '/?delay=0.4');
    ok(wait_until(sub { $a->stats->{active} == 1 }), 'a request is under way, and a connection kept');
    is(open_at($a, 1), 1, 'the same');
    $node->get('/') ;
    $node->signal('QUIT');
    is(open_at($a, 1, 0.3), 1, 'the idle one is closed, the busy one is not');
    is($client->response->{status}, 200, 'its request is answered');
    ok($node->quit(timeout => $SOON), 'then it ends: the connection is not kept by a process that is to end');
    is(open_at($a, 0), 0, 'nothing is open');
    $node->log_is_clean;
};

subtest 'TERM' => sub {
    my $node = node();
    $node->get('/');
    ok($node->stop, 'it ends');
    is(open_at($a, 0), 0, 'with the connection');
    $node->log_is_clean;
};

subtest 'reload' => sub {
    my $node = node();
    is($node->get('/')->{status}, 200, 'a connection is kept');
    is($a->stats->{open}, 1, 'one');
    my $start = time;
    ok($node->reload, 'a reload');
    cmp_ok(time - $start, '<', $SOON, 'the old worker ends at once');
    is(open_at($a, 0), 0, 'and its connection with it');
    my $first = number($node->get('/'));
    like($first, qr/\.1$/, 'the new one makes its own');
    is(int number($node->get('/')), int $first, 'and keeps it');

    my $client = begin($node, '/?delay=0.5');
    ok(wait_until(sub { $a->stats->{active} == 1 }), 'a request');
    ok($node->reload(wait => 'new'), 'is under way at a reload');
    is(number($node->get('/')), int($first) + 1 . '.1', 'new requests have a new connection');
    is(int number($client->response), int $first, 'it is answered on the old one');
    ok(wait_until(sub { !$node->old_workers }, $SOON), 'and the old worker ends');
    is(open_at($a, 1), 1, 'only that of the new worker is left');

    for my $keeps ('', 'keepalive 4;', 'registry_keepalive 2 timeout=1s;', 'registry_balance least_conn warm; registry_keepalive 8;') {
        (my $http = $HTTP) =~ s/registry_keepalive 8;/$keeps/;
        $node->set_conf(http => $http);
        ok($node->reload, 'a reload to "' . $keeps . '"');
        my @numbers = map { number($node->get('/')) } 1 .. 3;
        is(scalar(keys %{ { map { int $_ => 1 } @numbers } }), $keeps ? 1 : 3, $keeps ? 'keeps a connection' : 'keeps none');
    }
    my $size = $HTTP;
    $size =~ s/256k/512k/;
    $node->set_conf(http => $size);
    ok($node->reload, 'a reload that moves the servers to a zone of another size');
    is(int number($node->get('/')), int number($node->get('/')), 'keeps connections there');
    nothing_in_flight($node, 'a');
    ok($node->quit, 'the end');
    is(open_at($a, 0), 0, 'of all of them');
    is(scalar($node->grep_log(qr/open socket|aborting/)), 0, 'and none was forgotten');
    $node->log_is_clean;
};

subtest 'a worker that is killed' => sub {
    my $node = node();
    $node->get('/');
    $node->kill_worker(($node->workers)[0]);
    is(open_at($a, 0), 0, 'its connections are gone');
    is(int number($node->get('/')), int number($node->get('/')), 'the next one keeps its own');
    nothing_in_flight($node, 'a');
    ok($node->quit, 'and ends');
    $node->log_is_clean(allow => [ [ qr/exited on signal 9/, 1 ] ]);
};

subtest 'master_process off' => sub {
    my $node = node(master => 0);
    my $client = $node->client;
    my $first = number($client->get('/'));
    is(int number($client->get('/')), int $first, 'a connection is kept');
    my $from = $node->log_size;
    $node->signal('HUP');
    $node->wait_log(qr/using the "\w+" event method/, 5, $from);
    my $start = time;
    ok($node->quit, 'it ends after a reload');
    cmp_ok(time - $start, '<', $SOON + 0.5, 'at once');
    is(open_at($a, 0), 0, 'and nothing stays open');
    $node->log_is_clean;

    $node = node(master => 0);
    $node->get('/');
    ok($node->quit, 'and without one');
    is(open_at($a, 0), 0, 'nothing stays open');
    is(scalar($node->grep_log(qr/open socket|aborting/)), 0, 'nothing was forgotten');
    $node->log_is_clean;
};

subtest 'worker_connections nearly used up' => sub {
    my $SERVERS = 20;
    my $servers = RegistryTest->nginx(workers => 1, modules => [], http => 'server { listen 0.0.0.0:%%PORT_all%%; return 204; }');
    my $port = $servers->port('all');
    my $list = join ' ', map { "server 127.3.0.$_:$port;" } 1 .. $SERVERS;
    my $node = node(
        worker_connections => 36,
        http => "$HTTP upstream many { registry main; registry_balance round_robin; registry_keepalive 1000; $list }",
        server => "$SERVER location = /many { proxy_pass http://many; }",
    );
    my ($worker) = $node->workers;
    my $fds = sub { my @fds = glob "/proc/$worker/fd/*"; return scalar @fds };
    my $base = $fds->();
    $node->get('/many') for 1 .. $SERVERS;
    cmp_ok($fds->() - $base, '>=', $SERVERS - 4, 'most of the connections are idle ones to servers');
    my @clients = map { begin($node, '/?delay=0.5') } 1 .. 12;
    my %status;
    $status{ $_->response->{status} }++ for @clients;
    is_deeply(\%status, { 200 => 12 }, 'clients get what they need all the same');
    my $refused = qr/worker_connections are not enough(?!, reusing connections)/;
    is(scalar($node->grep_log($refused)), 0, 'nobody was turned away');
    my $sum = parallel(10, 300, [ map { $node->url($_) } '/many', '/?delay=0.005' ], keepalive => 0);
    is_deeply($sum->{status}, { 200 => 150, 204 => 150 }, 'with many requests of both kinds too') or diag(explain($sum));
    nothing_in_flight($node, qw(a many));
    $node->log_is_clean;
};

done_testing;
