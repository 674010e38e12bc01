# Floods of requests to the API: more adds than the zone has room for, repeated ones, namespaces by the
# thousand, pipelines, bodies of 64k, long URLs and many headers. The zone stays whole, the workers' memory
# flat, and the log at nginx's default level short.

use lib 't/lib';
use RegistryTest;
use FindBin;
require "$FindBin::Bin/hostile.pl";

my $backend = RegistryTest->backend(name => 'a');
my $node = RegistryTest->nginx(
    workers => 2, log_level => 'error',
    http    => "access_log off; keepalive_requests 1000000;\n"
        . 'registry main 1m { heartbeat_ttl 0; } registry names 512k { heartbeat_ttl 0; }
        registry guarded 128k { api_token sesame; }
        upstream backend { registry main; } upstream g { registry guarded; }',
    server  => 'location /upstream/ { registry_api main; } location /names/ { registry_api names; }
        location /guarded/ { registry_api guarded; }
        location / { proxy_pass http://backend; }',
);
my $port = $backend->port;
is(api($node, 'add', { port => $port, weight => 3 })->{status}, 200, 'a server of which the clients know nothing');

sub address { my ($n) = @_; return sprintf '127.%d.%d.%d', 100 + ($n >> 16), $n >> 8 & 255, $n & 255 }
sub adds { my ($path, @numbers) = @_; return map { request($path, 'host=' . address($_) . '&port=1') } @numbers }

# 17,000 adds are ten seconds of 100,000 a minute.
my $room;
{
    my $load = load_start(url => $node->url('/'), conns => 2, pause => 0.01);
    my $start = time;
    my $adds = some(17_000) < 2_500 ? 2_500 : 17_000;    # more than there is room for
    my $got = flood($node, adds('/upstream/add', 1 .. $adds));
    my $seconds = time - $start;
    diag(sprintf '%d adds a second', $adds / $seconds) if $ENV{TEST_VERBOSE};
    $room = $got->{200};
    is(join(' ', sort keys %$got), '200 507', 'unique addresses: some are added, the rest is told that the zone is full');
    is($got->{200} + $got->{507}, $adds, 'each is answered');
    my $sum = load_stop($load);
    is($sum->{failed}, 0, 'the proxied requests beside it are answered');
    # Servers that nobody listens at are tried and left, as anywhere.
    ok($sum->{requests} > 0, 'all the time');
}
is(status($node)->{total}, $room + 1, 'as many servers are there');
my $at_full = status($node)->{total};

{
    my $got = flood($node, adds('/upstream/add', map { 1 + $_ % 50 } 1 .. some(10_000)));
    is_deeply($got, { 200 => some(10_000) }, 'repeated addresses: each is a heartbeat');
    is(status($node)->{total}, $at_full, 'and no server more');
    my %servers = %{ servers($node) };
    is($servers{"127.0.0.1:$port"}{weight}, 3, 'nobody else has changed');
}

# Everything can be removed and added again.
{
    my @all = map { request('/upstream/remove', 'host=' . address($_) . '&port=1') } 1 .. $room;
    is_deeply(flood($node, @all), { 200 => $room }, 'all are removed');
    is(status($node)->{total}, 1, 'but one');
    is($node->get('/')->{body}, "a\n", 'which gets the requests');
    my $got = flood($node, adds('/upstream/add', 20_001 .. 20_000 + $room + 10));
    is_deeply($got, { 200 => $room, 507 => 10 }, 'others find as much room, and no more');
    @all = map { request('/upstream/remove', 'host=' . address($_) . '&port=1') } 20_001 .. 20_000 + $room;
    is_deeply(flood($node, @all), { 200 => $room }, 'they go again');
}

# Thousands of namespaces: each is made by its first server and gone with its last.
{
    my @add = map { request('/names/add', "ns=n$_&host=127.100.0.1&port=1") } 1 .. 5_000;
    my $got = flood($node, @add);
    my $spaces = $got->{200};
    is(join(' ', sort keys %$got), '200 507', 'namespaces: the zone bounds them as well');
    is($got->{200} + $got->{507}, 5_000, 'each request is answered');
    my @remove = map { request('/names/remove', "ns=n$_&host=127.100.0.1&port=1") } 1 .. $spaces;
    is_deeply(flood($node, @remove), { 200 => $spaces }, 'their servers are removed');
    is($node->get('/names/status?ns=n1')->{status}, 404, 'with them the namespaces are gone');
    $got = flood($node, map { request('/names/add', "ns=m$_&host=127.100.0.1&port=1") } 1 .. $spaces + 1);
    is_deeply($got, { 200 => $spaces, 507 => 1 }, 'as many others find room');
    @remove = map { request('/names/remove', "ns=m$_&host=127.100.0.1&port=1") } 1 .. $spaces;
    is_deeply(flood($node, @remove), { 200 => $spaces }, 'and go');
    # Asking for what is not there makes nothing.
    $got = flood($node, map { request('/names/refresh', "ns=q$_&host=127.100.0.1&port=1") } 1 .. some(3_000));
    is_deeply($got, { 404 => some(3_000) }, 'a namespace that is asked for is not made');
    $got = flood($node, map { request('/names/add', "ns=n$_&host=127.100.0.1&port=1") } 1 .. $spaces);
    is_deeply($got, { 200 => $spaces }, 'there is all the room as before');
    flood($node, map { request('/names/remove', "ns=n$_&host=127.100.0.1&port=1") } 1 .. $spaces);
}

# A hundred requests in one packet, on ten connections at a time, and out of step.
{
    my @clients = map { $node->client } 1 .. 10;
    my $batch = join '', map {
        request('/upstream/add', "host=127.200.0.$_&port=1"), "GET /upstream/health HTTP/1.1\r\nHost: a\r\n\r\n",
            request('/upstream/remove', "host=127.200.0.$_&port=2"), request('/upstream/add', '{"port":', 'Content-Type: application/json')
    } 1 .. 25;
    $_->send($batch) for @clients;
    my @statuses = map { my $client = $_; join ' ', map { $client->response->{status} } 1 .. 100 } @clients;
    is_deeply(\@statuses, [ (join ' ', ('200 200 404 400') x 25) x 10 ], 'pipelines: each request is answered, in order');
    flood($node, map { request('/upstream/remove', "host=127.200.0.$_&port=1") } 1 .. 25);
}

# Sent and not waited for: the client is gone before the first reply.
{
    for (1 .. 50) {
        my $client = $node->client;
        $client->send(join '', adds('/upstream/add', 1 .. 100));
        $client->reset;
    }
    ok(wait_until(sub { $node->get('/upstream/health')->{status} == 200 }), 'clients that do not wait for replies');
    # Some of what they sent is only worked on now.
    wait_until(sub {
        my @known = grep { !/^127\.0\.0\.1:/ } keys %{ servers($node) };
        flood($node, map { /(.*):/; request('/upstream/remove', "host=$1&port=1") } @known);
        return !@known;
    });
    is(status($node)->{total}, 1, 'what they added can be removed');
}

# In memory.
my $get = sub { my ($path, @headers) = @_; return "GET $path HTTP/1.1\r\nHost: a\r\n" . join('', map { "$_\r\n" } @headers) . "\r\n" };
my $long = 'x' x 7_900;
for my $case (
    [ 'adds and removes', 512, [ (map { adds('/upstream/add', $_), request('/upstream/remove', 'host=' . address($_) . '&port=1') } 1 .. 500) ], '200' ],
    [ 'adds beyond the zone', 512, [ adds('/upstream/add', 1 .. $room + 200) ], '200 507' ],
    [ 'namespaces', 512, [ map { (request('/names/add', "ns=n$_&port=1"), request('/names/remove', "ns=n$_&port=1")) } 1 .. 500 ], '200' ],
    [ 'bodies of 64k', 512, [ (request('/upstream/add', 'host=127.100.0.1&port=1' . '&' x 65_000)) x 300 ], '200' ],
    [ 'bodies of more', 512, [ (request('/upstream/add', 'x' x 65_537)) x 30 ], '413' ],
    [ 'bodies without a token', 512, [ (request('/guarded/add', 'x' x 65_537)) x 100 ], '401' ],
    [ 'URLs of 8k', 512, [ ($get->("/upstream/health?$long")) x 500 ], '200' ],
    [ 'endpoints of 8k', 512, [ ($get->("/upstream/$long")) x 200 ], '404' ],
    [ 'escaped endpoints', 512, [ ($get->('/upstream/' . '%ff' x 2_600)) x 200 ], '404' ],
    [ 'many headers', 512, [ ($get->('/guarded/health', ('X-API-Token: wrong') x 500)) x 100 ], '401' ],
    [ 'more headers than nginx reads', 512, [ ($get->('/guarded/health', ('X-API-Token: ' . 'y' x 2000) x 30)) x 20 ], '400 closed' ],
    [ 'status of all', 512, [ ($get->('/upstream/status')) x 20 ], '200' ],
) {
    my ($name, $most, $requests, $expected) = @$case;
    my %statuses;
    stays_flat($node, $name, 5, $most, sub {
        my $got = flood($node, @$requests);
        $statuses{$_}++ for keys %$got;
    });
    is(join(' ', sort keys %statuses), $expected, "$name: $expected");
}

# The one line a second of each worker about the full zones, nginx's own about servers that do not answer,
# and nothing else.
my @own = $node->grep_log(qr/registry "/);
cmp_ok(scalar(@own), '<', 200, 'a few lines in the error log');
my @other = grep { !/\[error\].* 507: The zone is full/ && !/while connecting to upstream/ } $node->grep_log(qr/./);
is("@other", '', 'and none of a client\'s mistakes');

$node->log_is_clean;
done_testing;
