# Slow clients: bodies of a byte now and then, and thousands of requests that are half sent. The traffic
# beside them goes on, and nginx's timeouts end them.

use lib 't/lib';
use RegistryTest;
use FindBin;
require "$FindBin::Bin/hostile.pl";

my $HALF_OPEN = 2_000;

# This process and nginx's worker need a descriptor for each: more than many shells allow.
my ($allowed) = slurp('/proc/self/limits') =~ /^Max open files\s+(\d+)/m;
if ($allowed && $allowed < 2 * $HALF_OPEN) {
    exec 'bash', '-c', 'ulimit -n "$0" && exec "$@"', 2 * $HALF_OPEN, $^X, (map { "-I$_" } @INC), $0
        or die "bash: $!\n";
}

my $backend = RegistryTest->backend(name => 'a');
my $node = RegistryTest->nginx(
    workers => 1, log_level => 'error', worker_connections => 4096,
    http    => "access_log off; client_header_timeout 5s; client_body_timeout 5s; lingering_timeout 500ms;\n"
        . 'registry main 128k { heartbeat_ttl 0; } registry guarded 128k { api_token sesame; }
        upstream backend { registry main; } upstream g { registry guarded; }',
    server  => 'location /upstream/ { registry_api main; } location /guarded/ { registry_api guarded; } location /soon/ { registry_api main; client_body_timeout 1s; }
        location / { proxy_pass http://backend; }
        location = /stub { stub_status; }',
);
api($node, 'add', { port => $backend->port });

sub open_connections { my ($n) = $node->get('/stub')->{body} =~ /Active connections: (\d+)/; return $n - 1 }

# A byte at a time: slow, but not too slow for client_body_timeout. What it adds is added.
{
    my $start = time;
    my $client = $node->client;
    my $body = 'host=127.9.9.9&port=1';
    $client->send("POST /upstream/add HTTP/1.1\r\nHost: a\r\nContent-Length: " . length($body) . "\r\n\r\n");
    for my $byte (split //, $body) {
        sleep 0.1;
        $client->send($byte);
        if ($byte eq '=') { is($node->get('/')->{body}, "a\n", 'requests are served while a body trickles in') }
    }
    is($client->response->{status}, 200, 'a slow body is read to its end');
    is(api($node, 'remove', { host => '127.9.9.9', port => 1 })->{status}, 200, 'and done');
}

# In chunks as well, and where there is no token: nothing of the body is waited for.
{
    my $client = $node->client;
    $client->send("POST /upstream/add HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for my $piece ('host=127.9.9.9&', 'port', '=', '1') {
        sleep 0.05;
        $client->send(sprintf('%x', length $piece));
        sleep 0.05;
        $client->send("\r\n$piece\r\n");
    }
    $client->send("0\r\n\r\n");
    is($client->response->{status}, 200, 'slow chunks too');
    is(api($node, 'remove', { host => '127.9.9.9', port => 1 })->{status}, 200, 'and done');

    $client = $node->client;
    $client->send("POST /guarded/add HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\nh");
    is($client->response->{status}, 401, 'without a token the answer comes before the body');
}

# Too slow.
{
    my $client = $node->client;
    $client->send("POST /soon/add HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nport=");
    my $start = time;
    my $response = $client->response;
    is($response->{status}, 408, 'a body that stops ends with client_body_timeout');
    is($response->{json}{message}, 'The body did not come in time', 'in JSON');
    cmp_ok(time - $start, '>', 0.9, 'not before');
}

# Thousands at once.
my @kinds = (
    [ 'no byte of the body',    "POST /upstream/add HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" ],
    [ 'half of the body',       "POST /upstream/add HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n" . 'x' x 4_000 ],
    [ 'half a chunk',           "POST /upstream/add HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n" . 'x' x 4_000 ],
    [ 'half of the headers',    "POST /upstream/add HTTP/1.1\r\nHost: a\r\nX-API-Tok" ],
);
# The first round shows how it is with so many, and that timeouts end them; in the others the clients go by
# themselves. The first two let the memory settle.
my @settled;
for my $round (1 .. 3) {
    my $load = load_start(url => $node->url('/'), conns => 4, pause => 0.005);
    my @clients;
    for my $i (1 .. $HALF_OPEN) {
        my $client = $node->client;
        $client->send($kinds[ $i % @kinds ][1]);
        push @clients, $client;
    }
    if ($round == 1) {
        cmp_ok(open_connections(), '>=', $HALF_OPEN, "$HALF_OPEN half-sent requests are there");
        my $start = time;
        is(api($node, 'refresh', { port => $backend->port })->{status}, 200, 'a heartbeat beside them is answered');
        is(api($node, 'add', { host => '127.9.9.7', port => 1, weight => 0 })->{status}, 200, 'an add');
        is(api($node, 'remove', { host => '127.9.9.7', port => 1 })->{status}, 200, 'a removal');
        cmp_ok(time - $start, '<', 2, 'at once');
        ok(wait_until(sub { open_connections() < 10 }, 20 * time_scale()), 'with the timeouts all are gone');
    }
    else {
        $_->close for @clients;
        ok(wait_until(sub { open_connections() < 10 }, 20 * time_scale()), 'with the clients all are gone');
    }
    my $sum = load_stop($load);
    is($sum->{failed}, 0, 'no proxied request failed meanwhile');
    is_deeply($sum->{status}, { 200 => $sum->{requests} }, 'each was answered by the server');
    cmp_ok($sum->{slowest}, '<', 3, 'none of them slowly');
    push @settled, [ memory($node) ];
}
# malloc gives memory back or keeps it for the next round: a kilobyte for each request is the bound.
for my $i (0, 1) {
    my ($first, $second, $last) = map { $_->[$i] } @settled;
    my $before = $first > $second ? $first : $second;
    cmp_ok($last, '<=', $before + $HALF_OPEN, ('no more memory is resident after the last round', 'nor allocated')[$i])
        or diag(join ' ', map { "$_->[$i] kB" } @settled);
}

is(status($node)->{total}, 1, 'nothing was registered by halves');
is(connections($node), 0, 'no request is left on a server');
is($node->error_log, '', 'and at the default level no line in the error log');

$node->log_is_clean;
done_testing;
