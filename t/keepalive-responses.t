# Which responses leave a connection that can be used again: side by side with stock keepalive,
# which decides it the same way.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my %raw = (
    trailers   => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nX-Connection: %C\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
    extra      => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Connection: %C\r\n\r\nok and more",
    second     => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Connection: %C\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Connection: 666.666\r\n\r\nforged",
    after_204  => "HTTP/1.1 204 No Content\r\nX-Connection: %C\r\n\r\nbytes",
    flood      => "HTTP/1.1 204 No Content\r\nX-Connection: %C\r\n\r\n" . 'x' x 20_000,
    # The header fills nginx' buffer to the brim: what follows is not read with it.
    brim       => do { my $head = "HTTP/1.1 204 No Content\r\nX-Fill: \r\n\r\n"; $head =~ s/(?<=Fill: )/'x' x (4096 - length $head)/er } . 'bytes',
    chunked_on => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Connection: %C\r\n\r\n2\r\nok\r\n0\r\n\r\nbytes",
    old        => "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nX-Connection: %C\r\n\r\nok",
    old_keep   => "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nX-Connection: %C\r\n\r\nok",
    refuses    => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\nX-Connection: %C\r\n\r\nok",
    internal   => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Accel-Redirect: /inside\r\nX-Connection: %C\r\n\r\nok",
    internal_0 => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Accel-Redirect: /inside\r\nX-Connection: %C\r\n\r\n",
    missing    => "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nX-Connection: %C\r\n\r\nno",
    missing_0  => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nX-Connection: %C\r\n\r\n",
    cached     => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nCache-Control: max-age=100\r\nX-Connection: %C\r\n\r\nok",
    stale      => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: \"x\"\r\nCache-Control: max-age=0\r\nX-Connection: %C\r\n\r\nok",
);
my $backend = NumberedBackend->new(name => 'a', raw => \%raw);
my $address = $backend->address;

my ($upstreams, $locations) = ('', '');
for my $kind (qw(registry stock)) {
    my ($registry, $keep) = $kind eq 'registry' ? ('registry main; ', 'registry_keepalive 8;') : ('', 'keepalive 8;');
    $upstreams .= "upstream $kind { $registry server $address max_fails=0; $keep }\n"
        . "upstream ${kind}_included { $registry server $address; $keep }\n";
    my $pass = "proxy_pass http://$kind;";
    $locations .= qq{
        location = /$kind/plain       { $pass }
        location = /$kind/brim        { $pass proxy_buffer_size 4096; }
        location = /$kind/unbuffered  { $pass proxy_buffering off; }
        location = /$kind/stream      { $pass proxy_request_buffering off; }
        location = /$kind/ignores     { $pass proxy_ignore_client_abort on; }
        location = /$kind/intercepted { $pass proxy_intercept_errors on; error_page 404 /page; }
        location = /$kind/cached      { $pass proxy_cache c; proxy_cache_key $kind\$request_uri; proxy_cache_valid 200 1h; }
        location = /$kind/checked     { $pass proxy_cache c; proxy_cache_key $kind\$request_uri; proxy_cache_revalidate on; }
        location = /$kind/http10      { $pass proxy_http_version 1.0; }
        location = /$kind/close       { $pass proxy_set_header Connection close; }
        location = /$kind/upgrade     { $pass proxy_set_header Connection Upgrade; proxy_set_header Upgrade \$http_upgrade; }
        location = /$kind/limited     { $pass limit_rate 4000000; }
        location = /$kind/stored      { $pass proxy_store %%DIR%%/stored_$kind; }
        location = /$kind/included    { proxy_pass http://${kind}_included; }
        location = /$kind/page.html   { root %%DIR%%/html; ssi on; }
        location = /$kind/page_wait.html { root %%DIR%%/html; ssi on; }
    };
}
my $node = RegistryTest->nginx(
    start => 0, workers => 1, http => qq{
        registry main 256k { }
        server {
            listen 127.0.0.1:%%PORT_h2%% http2;
            default_type application/grpc;
            location / { add_header X-Connection \$connection.\$connection_requests; return 200 x; }
            location /grpc/hang { proxy_pass http://$address/?hang=1; }
        }
        upstream grpc { registry main; registry_keepalive 8; server 127.0.0.1:%%PORT_h2%%; }
        proxy_cache_path %%DIR%%/cache keys_zone=c:128k;
        $upstreams
    }, server => qq{
        location /upstream/ { registry_api main; }
        location = /page    { return 404 page; }
        location = /inside  { internal; return 200 inside; }
        location = /registry/fastcgi     { fastcgi_pass registry; fastcgi_keep_conn on; fastcgi_param REQUEST_URI \$request_uri; fastcgi_param CONTENT_LENGTH \$content_length; }
        location = /registry/fastcgi_off { fastcgi_pass registry; fastcgi_param REQUEST_URI \$request_uri; }
        location /grpc { grpc_pass grpc://grpc; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        client_max_body_size 10m;
        $locations
    },
);
for my $kind (qw(registry stock)) {
    my $dir = $node->dir . "/html/$kind";
    mkdir $dir;
    my $include = sub { join '', map { qq(<!--# include virtual="/$kind/included?n=$_" $_[0] -->) } 1 .. 3 };
    spew("$dir/page.html", $include->(''));
    spew("$dir/page_wait.html", $include->('wait="yes"'));
}
$node->start;

# A request, begun and left alone.
sub abort {
    my ($path, $after) = @_;
    my $client = $node->client;
    $client->send("GET $path HTTP/1.1\r\nHost: x\r\n\r\n");
    $after ? wait_until($after) : $client->read_some;
    $client->close;
    return { status => 'aborted', body => '' };
}
# A body of which the server does not wait for the end.
sub early {
    my ($path) = @_;
    my $client = $node->client;
    $client->send("POST $path?early=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nConnection: close\r\n\r\nbegin");
    my $r = $client->response;
    $client->close;
    return $r;
}
sub upgraded {
    my ($path) = @_;
    my $client = $node->client;
    $client->send("GET $path HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n");
    my $r = $client->response;
    $client->send('ping');
    my $got = $client->read_some;
    $client->close;
    return { status => "$r->{status} $got", body => '' };
}
sub get  { my ($path, %opt) = @_; return sub { $node->get("/$_[0]/$path", %opt) } }
sub post { my ($path, $body, %opt) = @_; return sub { $node->post("/$_[0]/$path", body => $body, %opt) } }

# What it is, the request, its status, and whether the next request has its connection.
my $big = 'b' x 3_000_000;
my @cases = (
    [ 'a response with a length'         => get('plain'), 200, 'same' ],
    [ 'an empty one'                     => get('plain?size=0'), 200, 'same' ],
    [ 'a large one'                      => get('plain?size=2000000'), 200, 'same' ],
    [ 'a large one, slowly passed on'    => get('limited?size=1000000'), 200, 'same' ],
    [ 'a chunked one'                    => get('plain?chunked=1'), 200, 'same' ],
    [ 'chunked with trailers'            => get('plain?raw=trailers'), 200, 'same' ],
    [ 'one that comes in pieces'         => get('plain?size=50000&drip=0.2'), 200, 'same' ],
    [ 'to HEAD'                          => sub { $node->client->request('HEAD', "/$_[0]/plain?size=9", close => 1) }, 200, 'same' ],
    [ 'to HEAD, chunked'                 => sub { $node->client->request('HEAD', "/$_[0]/plain?chunked=1", close => 1) }, 200, 'same' ],
    [ '204'                              => get('plain?status=204'), 204, 'same' ],
    [ '304'                              => get('plain?status=304'), 304, 'same' ],
    [ '404'                              => get('plain?status=404'), 404, 'same' ],
    [ 'not buffered'                     => get('unbuffered?size=500000'), 200, 'same' ],
    [ 'not buffered, chunked'            => get('unbuffered?size=500000&chunked=1'), 200, 'same' ],
    [ 'stored in a file'                 => get('stored?size=100000'), 200, 'same' ],

    [ 'more than its length'             => get('plain?raw=extra'), 200, 'new' ],
    [ 'the same, not buffered'           => get('unbuffered?raw=extra'), 200, 'new' ],
    [ 'a second response after it'       => get('plain?raw=second'), 200, 'new' ],
    [ 'a second response, not buffered'  => get('unbuffered?raw=second'), 200, 'new' ],
    [ 'bytes after the last chunk'       => get('plain?raw=chunked_on'), 200, 'new' ],
    [ 'bytes after a 204'                => get('plain?raw=after_204'), 204, 'as stock' ],
    [ 'many bytes after a 204'           => get('plain?raw=flood'), 204, 'new' ],
    [ 'bytes that were not read'         => get('brim?raw=brim'), 204, 'new' ],
    [ 'bytes later on'                   => sub { my $r = get('plain?late=0.05')->(@_); sleep 0.15; $r }, 200, 'new' ],
    [ 'from HTTP/1.0'                    => get('plain?raw=old'), 200, 'new' ],
    [ 'from HTTP/1.0 with keep-alive'    => get('plain?raw=old_keep'), 200, 'as stock' ],
    [ 'to HTTP/1.0'                      => get('http10'), 200, 'new' ],
    [ 'with Connection: close'           => get('plain?raw=refuses'), 200, 'new' ],
    [ 'to Connection: close'             => get('close'), 200, 'new' ],
    [ 'cut short'                        => get('plain?size=1000&cut=10'), 0, 'new' ],
    [ 'no response'                      => get('plain?close=1'), 502, 'new' ],
    [ 'a reset'                          => get('plain?reset=1'), 502, 'new' ],

    [ 'an error page in its place'       => get('intercepted?raw=missing'), 404, 'as stock' ],
    [ 'the same of one without a body'   => get('intercepted?raw=missing_0'), 404, 'as stock' ],
    [ 'X-Accel-Redirect'                 => get('plain?raw=internal'), 200, 'as stock' ],
    [ 'the same without a body'          => get('plain?raw=internal_0'), 200, 'as stock' ],
    [ 'into the cache'                   => get('cached?raw=cached'), 200, 'same' ],
    [ 'HEAD, cached as GET'              => sub { $node->client->request('HEAD', "/$_[0]/cached?raw=cached&2", close => 1) }, 200, 'same' ],
    [ 'large, into the cache'            => get('cached?size=1000000'), 200, 'same' ],
    [ 'to be checked'                    => get('checked?raw=stale'), 200, 'same' ],

    [ 'a small body'                     => post('plain', 'x=1'), 200, 'same' ],
    [ 'a large body, in a file'          => post('plain', $big), 200, 'same' ],
    [ 'a large body, not buffered'       => post('stream', $big), 200, 'same' ],
    [ 'a body that is not waited for'    => sub { early("/$_[0]/stream") }, 200, 'new' ],

    [ 'the client leaves before it'      => sub { abort("/$_[0]/plain?hang=1", sub { $backend->stats->{active} }) }, 'aborted', 'new' ],
    [ 'the client leaves in its middle'  => sub { abort("/$_[0]/plain?size=50000&drip=0.5") }, 'aborted', 'new' ],
    [ 'the same, not buffered'           => sub { abort("/$_[0]/unbuffered?size=50000&drip=0.5") }, 'aborted', 'new' ],
    [ 'it leaves, which is ignored'      => sub { abort("/$_[0]/ignores?delay=0.1", sub { $backend->stats->{active} }) }, 'aborted', 'same' ],
    [ '101, and the client leaves'       => sub { upgraded("/$_[0]/upgrade") }, '101 ping', 'new' ],
    [ 'Upgrade asked in vain'            => sub { $node->get("/$_[0]/upgrade?status=200", headers => {}) }, 200, 'as stock' ],
);

sub quiet { return wait_until(sub { !$backend->stats->{active} }) }
# Which connection the next plain request has, after a request on one that is known.
sub next_one {
    my ($kind, $request) = @_;
    my $before = number($node->get("/$kind/plain"));
    my $r = $request->($kind);
    quiet();
    wait_until(sub { connections($node, 'registry') == 0 });
    my $after = number($node->get("/$kind/plain"));
    return ($r->{status}, $after =~ /^none/ ? $after : int $before == int $after ? 'same' : 'new');
}

for my $case (@cases) {
    my ($what, $request, $status, $expected) = @$case;
    my %got;
    for my $kind (qw(stock registry)) {
        my ($got_status, $connection) = next_one($kind, $request);
        is($got_status, $status, "$kind: $what: status");
        $got{$kind} = $connection;
    }
    is($got{registry}, $got{stock}, "$what: as with stock keepalive");
    is($got{registry}, $expected, "$what: the next request has the $expected connection") if $expected =~ /same|new/;
}

# Stock keepalive would give FastCGI a connection of HTTP, so it is no measure here.
subtest 'FastCGI' => sub {
    my $count = sub { my %seen = map { int $_ => 1 } @_; return scalar keys %seen };
    is($count->((map { number($node->get('/registry/fastcgi')) } 1 .. 3), number($node->post('/registry/fastcgi', body => 'x' x 100_000))),
        1, 'with keep_conn one connection');
    is($count->(map { number($node->get('/registry/fastcgi_off')) } 1 .. 3), 3, 'without it one for each request');
};

subtest 'gRPC' => sub {
    my %seen;
    for my $body ('', 'x', 'x' x 200_000) {
        for (1 .. 5) {
            my $r = $node->post('/grpc/x', body => $body);
            is($r->{status}, 200, 'a request with a body of ' . length $body);
            $seen{ int number($r) }++;
        }
    }
    # The other side may announce a larger window when it has nothing to answer any more.
    cmp_ok(scalar keys %seen, '<', 15, 'connections are used again') or diag(explain(\%seen));
    my @clients = map {
        my $client = $node->client;
        $client->send("POST /grpc/hang HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx");
        $client;
    } 1 .. 3;
    ok(wait_until(sub { connections($node, 'grpc') == 3 }), 'three in flight');
    $_->close for @clients;
    nothing_in_flight($node, 'grpc');
    is($node->post('/grpc/x', body => 'x')->{status}, 200, 'what they leave disturbs nobody') for 1 .. 3;
};

subtest 'subrequests' => sub {
    for my $kind (qw(stock registry)) {
        my $made = sub { my ($page) = @_; my $before = $backend->stats->{connections};
            my $r = $node->get("/$kind/$page"); return $r->{body} eq "a\n" x 3 ? $backend->stats->{connections} - $before : $r->{body} };
        is($made->('page_wait.html'), 1, "$kind: three one after the other have one connection");
        is($made->('page.html'), 2, "$kind: three at once have two more");
        is($made->('page.html'), 0, "$kind: and then none");
    }
};

subtest 'everything together, on many connections' => sub {
    my @paths = map { "/registry/$_" } 'plain', 'plain?chunked=1', 'plain?status=204', 'plain?raw=extra', 'plain?raw=old', 'plain?raw=internal',
        'plain?size=100000', 'unbuffered?size=100000', 'intercepted?raw=missing', 'cached?raw=cached&3', 'fastcgi', 'plain?raw=second', 'http10';
    my $sum = parallel(16, 800, [ map { $node->url($_) } @paths ], abort_share => 0.1, abort_after => 0.002);
    is($sum->{failed}, 0, 'no request fails') or diag(explain($sum));
    is_deeply([ grep { !/^(?:200|204|404)$/ } keys %{ $sum->{status} } ], [], 'and none has another answer');
    my $open;
    ok(wait_until(sub { ($open = $backend->stats->{open}) <= 8 * 4 }), 'not more are kept than may be') or diag($open);
};

nothing_in_flight($node, qw(registry registry_included));
$node->log_is_clean;
done_testing;
