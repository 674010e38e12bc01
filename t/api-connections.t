# What becomes of a connection to the API: kept after an answer, also after one that refuses; closed
# after a body that did not come to its end; and the same over HTTP/1.0 and HTTP/2.

use lib 't/lib';
use RegistryTest;
use RegistryTest::Process qw(binary_info find_binary);

my $version = binary_info(find_binary())->{number};
my $listen = $version >= 1.025001 ? 'listen 127.0.0.1:%%PORT_h2%%; http2 on;' : 'listen 127.0.0.1:%%PORT_h2%% http2;';
my $node = RegistryTest->nginx(
    http => "registry main 128k { }
        upstream backend { registry main; }
        server { $listen location /upstream/ { registry_api main; } }",
    server => 'location /upstream/ { registry_api main; client_body_timeout 100ms; }
        location /slow/ { registry_api main; client_body_timeout 1s; }
        location /id { return 200 "$connection $connection_requests"; }',
);

# The status, and that the body is JSON that says the same.
sub is_reply {
    my ($response, $code, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $said = $response->{json} ? $response->{json}{code} : $response->{error} || $response->{body};
    is("$response->{status} $said", "$code $code", $name);
    return;
}

sub total { return status($node)->{total} }

# Kept connections.
{
    my $client = $node->client;
    my ($id, $n) = split / /, $client->get('/id')->{body};
    my $same = sub {
        my ($after) = @_;
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        is($client->get('/id')->{body}, "$id " . ($n += 2), "the connection is usable after $after");
    };
    is_reply($client->post('/upstream/refresh', body => 'port=1'), 404, 'a server that is not known');
    $same->('404');
    is_reply($client->post('/upstream/nonsense', body => 'port=1'), 404, 'an endpoint that is none, with a body');
    $same->('404 of a request with a body');
    is_reply($client->get('/upstream/add?port=1'), 405, 'a method that is wrong');
    $same->('405');
    is_reply($client->request('PUT', '/upstream/add', body => 'x' x 20_000), 405, 'a wrong method with a body');
    $same->('405 of a request with a body');
    is_reply($client->post('/upstream/add', body => 'port='), 400, 'a parameter that is wrong');
    $same->('400');
    is_reply($client->post('/upstream/add', body => '{', headers => { 'Content-Type' => 'text/xml' }), 415, 'a type that is wrong');
    $same->('415');
    is($client->request('HEAD', '/upstream/add?port=1')->{status}, 405, 'HEAD where it is wrong');
    $same->('HEAD');
    is_reply($client->post('/upstream/add', body => 'x' x 65_537), 413, 'a body that is a little too long');
    $same->('413');
    my %chunked = (headers => { 'Transfer-Encoding' => 'chunked' });
    is_reply($client->post('/upstream/add', %chunked, body => "6\r\nport=1\r\n0\r\n\r\n"), 200, 'a chunked body');
    $same->('a chunked body');
    is_reply($client->post('/upstream/remove', %chunked, body => "3\r\npor\r\n3\r\nt=1\r\n0\r\n\r\n"), 200, 'another');
    $same->('another');
}

# Pipelined, with chunked bodies, also of requests that take none.
{
    my $chunked = "Host: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nport=2\r\n0\r\n\r\n";
    my $client = $node->client;
    $client->send("POST /upstream/add HTTP/1.1\r\n${chunked}POST /upstream/nonsense HTTP/1.1\r\n$chunked"
        . "GET /upstream/status HTTP/1.1\r\n${chunked}HEAD /upstream/add HTTP/1.1\r\n$chunked"
        . "POST /upstream/remove HTTP/1.1\r\n${chunked}GET /upstream/status HTTP/1.1\r\nHost: a\r\n\r\n");
    is_reply($client->response, 200, 'pipelined: the first');
    is_reply($client->response, 404, 'pipelined: an endpoint that is none');
    is($client->response->{json}{total}, 1, 'pipelined: one server');
    is($client->response(method => 'HEAD')->{status}, 405, 'pipelined: HEAD');
    is_reply($client->response, 200, 'pipelined: removed');
    is($client->response->{json}{total}, 0, 'pipelined: none is left');
}

# Bodies that do not come to their end.
{
    my $head = "POST /upstream/add HTTP/1.1\r\nHost: a\r\n";
    for my $case (
        [ 'half a body',           "${head}Content-Length: 20\r\n\r\nport=9001" ],
        [ 'no body at all',        "${head}Content-Length: 20\r\n\r\n" ],
        [ 'half a chunk',          "${head}Transfer-Encoding: chunked\r\n\r\n20\r\nport=9001" ],
        [ 'no last chunk',         "${head}Transfer-Encoding: chunked\r\n\r\n9\r\nport=9001\r\n" ],
        [ 'a byte less than said', "${head}Content-Length: 10\r\n\r\nport=9001" ],
    ) {
        my ($what, $bytes) = @$case;
        my $client = $node->client;
        $client->send($bytes);
        my $response = $client->response;
        is_reply($response, 408, "$what: JSON says that the time is over");
        is($response->{headers}{connection}, 'close', "$what: and that the connection ends");
        ok($client->closed_by_server(timeout => 5), "$what: and it does");

        $client = $node->client;
        $client->send($bytes);
        shutdown $client->socket, 1;
        unlike($client->read_all, qr/<html/i, "$what and a client that sends no more: no page");

        $client = $node->client;
        $client->send($bytes);
        $client->reset;
    }
    is(total(), 0, 'none of these registered a server');
}

# A body that comes slowly, each piece in time.
{
    my $client = $node->client;
    $client->send("POST /slow/add HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n");
    for my $byte (split //, 'port=9001') {
        sleep 0.15;
        $client->send($byte);
    }
    is_reply($client->response, 200, 'a body that takes longer than the timeout, of which no pause does');
    is_reply($node->post('/upstream/remove', body => 'port=9001'), 200, 'and it did register');
}

# Expect: 100-continue.
{
    my $head = "POST /upstream/add HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length:";
    my $client = $node->client;
    $client->send("$head 6\r\n\r\n");
    like($client->read_some, qr{^HTTP/1.1 100 Continue\r\n\r\n\z}, 'a client that asks first may go on');
    $client->send('port=1');
    is_reply($client->response, 200, 'and is served');

    $client = $node->client;
    $client->send("$head 10000000\r\n\r\n");
    is_reply($client->response, 413, 'a client that asks first hears at once that its body is too long');
    is_reply($node->post('/upstream/remove', body => 'port=1'), 200, 'only the first registered');
}

# HTTP/1.0.
{
    is_reply($node->post('/upstream/add', body => 'port=1', version => '1.0'), 200, 'HTTP/1.0: add');
    is_reply($node->get('/upstream/status', version => '1.0'), 200, 'HTTP/1.0: status');
    is_reply($node->post('/upstream/remove', body => 'port=1', version => '1.0'), 200, 'HTTP/1.0: remove');
}

# HTTP/2.
{
    my @h2 = ('--http2-prior-knowledge');
    my $url = $node->url('/upstream/', 'h2');
    my $json = spew($node->dir . '/json', '{"port":' . ' ' x 60_000 . '9001}');
    my $long = spew($node->dir . '/long', 'x' x 1_000_000);
    my @chunked = ('-H', 'Content-Length:', '-T', $long, '-X', 'POST');
    my $response = curl(@h2, '-d', 'port=9001&weight=2', "${url}add");
    is_reply($response, 200, 'HTTP/2: a form');
    is($response->{version}, '2', 'HTTP/2: it is');
    is($response->{headers}{'content-type'}, 'application/json; charset=utf-8', 'HTTP/2: its type');
    is_reply(curl(@h2, '-H', 'Content-Type: application/json', '--data-binary', "\@$json", "${url}refresh"), 200,
        'HTTP/2: 60k of JSON');
    is_reply(curl(@h2, '-d', 'port=0', "${url}add"), 400, 'HTTP/2: a wrong parameter');
    # curl may take the end of a stream that it still writes to for an error, also of stock nginx.
    curl(@h2, '--data-binary', "\@$long", "${url}add");
    curl(@h2, @chunked, "${url}add");
    ok(wait_until(sub { 2 == (() = $node->access_log =~ m{"POST /upstream/add HTTP/2.0" 413 67 }g) }, 5),
        'HTTP/2: a body that is too long, of an announced length and without');
    is_reply(curl(@h2, "${url}add"), 405, 'HTTP/2: a wrong method');
    is(curl(@h2, '-I', "${url}status")->{status}, 200, 'HTTP/2: HEAD');
    is_reply(curl(@h2, "${url}status"), 200, 'HTTP/2: status');
    is(total(), 1, 'HTTP/2: one server was registered');
}

$node->log_is_clean;
ok($node->quit, 'nginx quits: no connection is left behind');
unlike($node->error_log, qr/open socket/, 'and says so');

done_testing;
