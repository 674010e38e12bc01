# The backends, the clients and the load of the plain Perl tests.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $backend = RegistryTest->backend(name => 'a');

# Answers as asked for
my $r = http('GET', $backend->url);
is("$r->{status} $r->{headers}{'x-backend'} $r->{body}", "200 a a\n", 'a plain answer');
is($r->{json}, undef, 'which is no JSON');
$r = http('POST', $backend->url('/x?echo=1&status=201&header=X-More:yes'),
    headers => { 'X-Test' => [ 1, 2 ] }, body => form({ b => 'two words', a => "\x{fc}&" }));
is($r->{status}, 201, 'another status');
is($r->{headers}{'x-more'}, 'yes', 'another header');
is($r->{json}{body}, 'a=%FC%26&b=two%20words', 'the form that was sent');
is("$r->{json}{method} $r->{json}{headers}{'x-test'}", 'POST 1, 2', 'the rest of the request');
is(length http('GET', $backend->url('/?size=100000'))->{body}, 100_000, 'a size');
is(http('GET', $backend->url('/?size=5&chunked=1'))->{body}, 'xxxxx', 'chunks');
is(http('HEAD', $backend->url('/?size=5'))->{body}, '', 'HEAD');
$r = http('GET', $backend->url('/?delay=0.2'));
ok($r->{time} >= 0.2 && $r->{time} < 1.2, 'a delay');
$r = http('GET', $backend->url('/?size=20&drip=0.2'));
ok($r->{time} >= 0.2 && $r->{body} eq 'x' x 20, 'a body that drips');
for my $case (
    [ 'close=1', qr/closed without a reply/ ],
    [ 'reset=1', qr/reset/ ],
    [ 'cut=0',   qr/closed within the body/ ],
    [ 'cut=1',   qr/closed within the body/ ],
    [ 'hang=1',  qr/timeout/ ],
) {
    my ($query, $error) = @$case;
    $r = http('GET', $backend->url("/?$query"), timeout => 0.3);
    ok($r->{status} == 0 && $r->{error} =~ $error, "no answer: $query") or diag(explain($r));
}

# Connections
my $client = RegistryTest->client($backend->url);
my $before = $backend->stats->{connections};
is($client->get('/')->{status}, 200, "request $_ on a kept connection") for 1, 2;
is($backend->stats->{connections}, $before + 1, 'which is one connection');
is($client->get('/?keepalive=0')->{headers}{connection}, 'close', 'the backend can end it');
ok(!$client->connected, 'and it has ended');
$client->open;
ok(!$client->closed_by_server, 'an open connection');
$client->close;
is(raw($backend->address, "GET /raw HTTP/1.0\r\n\r\n") =~ /^HTTP\/1\.1 200/ ? 1 : 0, 1, 'raw bytes');
is(http('GET', $backend->url('/?echo=1'), from => '127.0.0.9')->{status}, 200, 'from another address');
$client->send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n");
is($client->response->{status}, 101, 'an upgrade');
$client->send('ping');
is($client->read_some, 'ping', 'sends back what it gets');
is($backend->stats->{active}, 1, 'and counts as one request');
$client->close;
ok(wait_until(sub { $backend->stats->{active} == 0 }), 'until it is closed');

for my $how (qw(fin rst)) {
    my $stale = RegistryTest->backend(name => 'stale', close_idle => $how);
    my $kept = RegistryTest->client($stale->url);
    is($kept->get('/')->{status}, 200, "close_idle $how: the first request");
    like($kept->get('/')->{error}, $how eq 'fin' ? qr/closed without a reply/ : qr/reset/,
        'the second finds a dead connection');
    is($stale->stats->{stale}, 1, 'and is counted');
}

# Behaviour that is set
$backend->set(status => 503, times => 2);
is(join(' ', map { http('GET', $backend->url)->{status} } 1 .. 3), '503 503 200', 'for some requests');
$backend->set(status => 500);
is(http('GET', $backend->url)->{status}, 500, 'from now on');
$backend->clear;
is(http('GET', $backend->url)->{status}, 200, 'and no longer');

# Other addresses
for my $host ('127.0.0.7', '::1', 'unix') {
    my $other = RegistryTest->backend(name => 'other', host => $host);
    is(http('GET', $other->url('/x?echo=1'))->{json}{uri}, '/x?echo=1', 'at ' . $other->address);
}

# Life
$backend->pause;
is(http('GET', $backend->url, timeout => 0.1)->{error}, 'timeout', 'paused');
$backend->resume;
is(http('GET', $backend->url)->{status}, 200, 'resumed');
for my $how (qw(stop kill)) {
    $backend->$how;
    like(http('GET', $backend->url)->{error}, qr/refused/, "after $how nobody listens");
    $backend->start;
    is(http('GET', $backend->url)->{status}, 200, 'until it starts again');
}

# Load
my $b = RegistryTest->backend(name => 'b');
$backend->reset_stats;
my $sum = parallel(20, 501, [ $backend->url('/?delay=0.01'), $b->url('/?status=404') ], procs => 2);
is_deeply($sum->{status}, { 200 => 251, 404 => 250 }, 'every request of a load is counted, by status')
    or diag(explain($sum));
is_deeply($sum->{backend}, { a => 251, b => 250 }, 'and by backend');
my $stats = $backend->stats;
is($stats->{requests}, 251, 'the backend has counted as many');
ok($stats->{max_active} > 1 && $stats->{max_active} <= 20, 'and several at once');
is($stats->{active}, 0, 'and none is left');

my $load = load_start(conns => 10, url => $b->url('/?delay=0.1'), abort_share => 0.5, abort_after => 0.01);
ok(wait_until(sub { $b->stats->{aborted} > 5 }), 'a load in the background, some of which is given up');
$sum = load_stop($load);
ok($sum->{requests} > 0 && $sum->{aborted} > 5 && $sum->{failed} == 0, 'tells how it went')
    or diag(explain($sum));
ok(wait_until(sub { my $s = $b->stats; $s->{active} == 0 && $s->{open} == 0 }), 'and leaves nothing behind');
$b->stop;
$sum = parallel(2, 4, $b->url);
is_deeply($sum->{errors}, { 'connect: Connection refused' => 4 }, 'errors are told apart');

# Other protocols, as nginx speaks them
my $cgi = RegistryTest->backend(name => 'cgi');
my $params = join ' ', map { "PARAM $_;" } 'REQUEST_METHOD $request_method', 'REQUEST_URI $request_uri',
    'CONTENT_TYPE $content_type', 'CONTENT_LENGTH $content_length', 'QUERY_STRING $args';
# An upstream each: a connection that was kept for one protocol is of no use to another.
my $front = RegistryTest->nginx(
    workers => 1,
    http => join('', map { "upstream ${_}_up { server " . $cgi->address . '; keepalive 4; }' } qw(http fastcgi scgi uwsgi)),
    server => 'fastcgi_keep_conn on; proxy_http_version 1.1; proxy_set_header Connection "";'
        . 'location /http { proxy_pass http://http_up; }'
        . join '', map {
            (my $with = $params) =~ s/PARAM/${_}_param/g;
            "location /$_ { $with ${_}_pass ${_}_up; }";
        } qw(fastcgi scgi uwsgi));
for my $protocol (qw(http fastcgi scgi uwsgi)) {
    my $body = 'b' x 100_000;
    my $started = $cgi->stats->{connections};
    for my $i (1, 2) {
        $r = $front->post("/$protocol?echo=1&status=201", body => $body, headers => { 'X-Test' => 'yes' });
        is("$r->{status} $r->{json}{uri} $r->{json}{headers}{'x-test'}",
            "201 /$protocol?echo=1&status=201 yes", "$protocol: a request and its answer")
            or $front->diag_log;
    }
    is($r->{json}{body}, $body, "$protocol: a body");
    my $kept = $protocol =~ /http|fastcgi/;
    is($cgi->stats->{connections} - $started, $kept ? 1 : 2, "$protocol: connections " . ($kept ? 'kept' : 'closed'));
    is(length $front->get("/$protocol?size=100000")->{body}, 100_000, "$protocol: a large answer");
    like($front->get("/$protocol?cut=1&size=9")->{body} || '', qr/^x?$/, "$protocol: cut off");
    is($front->get("/$protocol?close=1")->{status}, 502, "$protocol: no answer");
}
$front->log_is_clean;

# What api and status send
my $echo = RegistryTest->backend(name => 'echo');
my $node = RegistryTest->nginx(
    server => 'location /upstream/ { proxy_pass http://' . $echo->address . '; proxy_set_header X-Client $remote_addr; }'
        . 'location = /upstream/status { default_type application/json;'
        . 'return 200 \'{"total":2,"data":[{"addr":"x:1","connections":2},{"addr":"y:2","connections":1}]}\'; }');
$echo->set(echo => 1);
$r = api($node, 'add', { host => '10.0.0.1', port => 80 });
is("$r->{json}{method} $r->{json}{uri} $r->{json}{body}", 'POST /upstream/add host=10.0.0.1&port=80', 'a form');
is($r->{json}{headers}{'content-type'}, 'application/x-www-form-urlencoded', 'as such');
$r = api_json($node, 'add', { port => 80 }, from => '127.0.0.8');
is("$r->{json}{body} $r->{json}{headers}{'content-type'}", '{"port":80} application/json', 'JSON');
is($r->{json}{headers}{'x-client'}, '127.0.0.8', 'from an address');
is(status($node, 'n')->{total}, 2, 'status');
is_deeply([ sort keys %{ servers($node, 'n') } ], [ 'x:1', 'y:2' ], 'servers by address');
is(connections($node, 'n'), 3, 'connections of all');
$node->log_is_clean;

done_testing;
