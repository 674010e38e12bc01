# Other protocols than plain HTTP over TCP: gRPC, FastCGI, SCGI, uwsgi, TLS, unix sockets, IPv6.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = (
    (map { $_ => RegistryTest->backend(name => $_) } qw(a b)),
    stale  => RegistryTest->backend(name => 'stale', close_idle => 'fin'),
    unix   => RegistryTest->backend(name => 'unix', host => 'unix'),
    ipv6   => RegistryTest->backend(name => 'ipv6', host => '::1'),
);
my ($server_a, $server_b) = map { 'server ' . $backend{$_}->address } qw(a b);
my $refuses = 'server ' . RegistryTest->backend(name => 'refuses', start => 0)->address;
my $hangs = $backend{a}->address;

my @cgi = qw(fastcgi scgi uwsgi);
my ($http, $server) = ('', '');
for my $protocol (@cgi) {
    my $params = join ' ', map { "${protocol}_param $_;" } 'REQUEST_METHOD $request_method',
        'REQUEST_URI $request_uri', 'CONTENT_TYPE $content_type', 'CONTENT_LENGTH $content_length';
    my $keep = $protocol eq 'fastcgi' ? 'fastcgi_keep_conn on;' : '';
    $http .= "upstream $protocol { registry main; registry_balance round_robin; $refuses; $server_a; $server_b; keepalive 4; }\n";
    $server .= "location /$protocol { ${protocol}_pass $protocol; $params $keep }\n"
        . "location /$protocol/late { ${protocol}_pass $protocol; $params $keep ${protocol}_read_timeout 200ms; }\n";
}
$http .= 'upstream stale { registry main; server ' . $backend{stale}->address . "; keepalive 4; }\n";
$server .= 'location /stale { fastcgi_pass stale; fastcgi_keep_conn on; fastcgi_param REQUEST_URI $request_uri; }';
$http .= 'upstream sockets { registry main; registry_balance round_robin; server '
    . join('; server ', map { $backend{$_}->address } qw(unix ipv6)) . "; keepalive 4; }\n";

my $ssl = q{
    ssl_certificate %%DIR%%/cert.pem; ssl_certificate_key %%DIR%%/key.pem;
    add_header X-Reused $ssl_session_reused always; add_header X-Protocol $ssl_protocol always;
};
my $node = RegistryTest->nginx(
    start => 0,
    workers => 1,
    http => qq{
        registry main 256k { }
        $http
        # A gRPC server: what its clients see, and what is needed to see who it was.
        server {
            listen 127.0.0.1:%%PORT_g1%% http2;
            listen 127.0.0.1:%%PORT_g2%% http2;
            keepalive_requests 3;
            default_type application/grpc;
            location / { add_header X-Port \$server_port always; return 200 "\$request_method \$uri"; }
            location /grpc/hang { proxy_pass http://$hangs/?hang=1; }
            location /grpc/echo { proxy_pass http://$hangs/?echo=1; }
        }
        upstream grpc { registry main; registry_balance round_robin; $refuses; server 127.0.0.1:%%PORT_g1%%; server 127.0.0.1:%%PORT_g2%%; keepalive 4; }

        # Two TLS servers, each with sessions of its own; the second request on a connection finds it dead.
        server { listen 127.0.0.1:%%PORT_s1%% ssl; $ssl ssl_protocols TLSv1.2; return 200 s1; }
        server { listen 127.0.0.1:%%PORT_s2%% ssl; $ssl ssl_protocols TLSv1.2 TLSv1.3; return 200 s2; }
        server { listen 127.0.0.1:%%PORT_s3%% ssl; $ssl ssl_protocols TLSv1.2 TLSv1.3; if (\$connection_requests = 2) { return 444; } location / { return 200 s3; } }
        upstream tls      { registry main; registry_balance round_robin; server 127.0.0.1:%%PORT_s1%%; server 127.0.0.1:%%PORT_s2%%; }
        upstream stock_tls { server 127.0.0.1:%%PORT_s1%%; server 127.0.0.1:%%PORT_s2%%; }
        upstream kept_tls { registry main; registry_balance round_robin; server 127.0.0.1:%%PORT_s1%%; server 127.0.0.1:%%PORT_s2%%; keepalive 4; }
        upstream stale_tls { registry main; server 127.0.0.1:%%PORT_s3%%; keepalive 4; }
        upstream no_tls   { registry main; registry_balance round_robin; server 127.0.0.1:%%PORT%%; server 127.0.0.1:%%PORT_s1%%; }
        upstream hung_tls { registry main; server 127.0.0.1:%%PORT_silent%%; }

        server {
            listen 127.0.0.1:%%PORT_h2%% http2;
            location / { proxy_pass http://sockets; }
            location /grpc/ { grpc_pass grpc://grpc; }
        }
    },
    server => qq{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        add_header X-Addr \$upstream_addr always;
        add_header X-Status \$upstream_status always;
        $server
        location /sockets   { proxy_pass http://sockets; }
        location /grpc/     { grpc_pass grpc://grpc; }
        location /grpc/hang/late { grpc_pass grpc://grpc; grpc_read_timeout 200ms; }
        location /tls/      { proxy_pass https://tls/; }
        location /stock_tls/ { proxy_pass https://stock_tls/; }
        location /kept_tls/ { proxy_pass https://kept_tls/; }
        location /stale_tls/ { proxy_pass https://stale_tls/; }
        location /no_reuse/ { proxy_pass https://tls/; proxy_ssl_session_reuse off; }
        location /distrust/ { proxy_pass https://tls/; proxy_ssl_verify on; proxy_ssl_trusted_certificate %%DIR%%/other.pem; }
        location /no_tls/   { proxy_pass https://no_tls/; }
        location /hung_tls/ { proxy_pass https://hung_tls/; proxy_connect_timeout 300ms; }
    },
);
for my $name (qw(cert other)) {
    my $dir = $node->dir;
    my $key = $name eq 'cert' ? 'key' : 'other_key';
    system("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -days 2 "
        . "-keyout $dir/$key.pem -out $dir/$name.pem 2>$dir/openssl.log") == 0 or die slurp("$dir/openssl.log");
}
$node->start;

sub in_flight {
    my ($ns, $count, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return ok(wait_until(sub { connections($node, $ns) == $count }), $what) || diag(connections($node, $ns) . ' in flight');
}
sub begin {
    my ($path, $method, %opt) = @_;
    my $client = $node->client;
    $client->send(RegistryTest::Client::format_request($method || 'GET', $path, %opt));
    return $client;
}

for my $protocol (@cgi) {
    subtest $protocol => sub {
        my $r = $node->post("/$protocol?echo=1", body => 'x' x 50_000);
        is($r->{headers}{'x-status'}, '502, 200', 'a server that refuses, and another');
        is($r->{json}{body}, 'x' x 50_000, 'which has the body');
        my %by;
        $by{ $node->get("/$protocol")->{headers}{'x-backend'} }++ for 1 .. 8;
        is_deeply(\%by, { a => 4, b => 4 }, 'both answer in turn');
        is($node->get("/$protocol?status=404")->{status}, 404, 'a status');
        is($node->get("/$protocol?close=1")->{status}, 502, 'no answer');
        in_flight($protocol, 0, 'nothing in flight');
        is(api($node, reset => { ns => $protocol })->{status}, 200, 'forgiven');
        my $client = begin("/$protocol?hang=1");
        in_flight($protocol, 1, 'one in flight');
        $client->close;
        in_flight($protocol, 0, 'none when its client has gone');
        is($node->get("/$protocol/late?hang=1")->{status}, 504, 'no answer in time');
        in_flight($protocol, 0, 'none in flight');
    };
}

subtest 'FastCGI with a kept connection that is dead' => sub {
    is($node->get('/stale')->{status}, 200, 'a first request');
    my $r = $node->get('/stale');
    is("$r->{status} $r->{headers}{'x-status'}", '200 502, 200', 'the second is sent again on a new one');
    is(servers($node, 'stale')->{ $backend{stale}->address }{fails}, 0, 'no failure');
    in_flight('stale', 0, 'nothing in flight');
};

subtest 'gRPC' => sub {
    my $r = $node->post('/grpc/service/Method', body => 'x');
    is("$r->{status} $r->{headers}{'x-status'}", '200 502, 200', 'a server that refuses, and another');
    is($r->{body}, 'POST /grpc/service/Method', 'its answer');
    my %by;
    # More than a connection of the server allows, so that kept ones are ended in between.
    for (1 .. 14) {
        $r = $node->post('/grpc/x', body => 'y' x 1000);
        $by{"$r->{status} $r->{headers}{'x-port'}"}++;
    }
    is_deeply(\%by, { map { '200 ' . $node->port($_) => 7 } qw(g1 g2) }, 'both answer in turn, on connections that are kept');
    $r = $node->post('/grpc/echo', body => 'z' x 100_000);
    is($r->{json}{body}, 'z' x 100_000, 'a body') or diag($r->{status});
    in_flight('grpc', 0, 'nothing in flight');
    my @clients = map { begin('/grpc/hang', 'POST', body => 'x') } 1 .. 3;
    in_flight('grpc', 3, 'three in flight');
    $_->close for @clients;
    in_flight('grpc', 0, 'none when their clients have gone');
    is($node->post('/grpc/hang/late', body => 'x')->{status}, 504, 'no answer in time');
    in_flight('grpc', 0, 'none in flight');
    api($node, reset => { ns => 'grpc' });
    $r = curl('--http2-prior-knowledge', '-d', 'x', $node->url('/grpc/echo', 'h2'));
    is("$r->{version} $r->{status} $r->{json}{body}", '2 200 x', 'from a client that speaks HTTP/2') or diag($r->{error});
    in_flight('grpc', 0, 'none in flight');
};

subtest 'unix sockets and IPv6' => sub {
    my %by;
    for (1 .. 8) {
        my $r = $node->get('/sockets');
        $by{"$r->{headers}{'x-backend'} $r->{headers}{'x-addr'}"}++;
    }
    is_deeply(\%by, { map { "$_ " . $backend{$_}->address => 4 } qw(unix ipv6) }, 'both answer in turn, with their addresses');
    my $servers = servers($node, 'sockets');
    is_deeply([ sort keys %$servers ], [ sort map { $backend{$_}->address } qw(unix ipv6) ], 'as in status');
    my @clients = map { begin('/sockets?hang=1') } 1 .. 4;
    in_flight('sockets', 4, 'four in flight');
    is(join(' ', map { $_->{connections} } values %{ servers($node, 'sockets') }), '2 2', 'two on each');
    $_->close for @clients;
    in_flight('sockets', 0, 'none at the end');
    is(api($node, add => { ns => 'sockets', host => $backend{ipv6}->host, port => $backend{ipv6}->port })->{json}{data}{addr},
        $backend{ipv6}->address, 'an IPv6 server that registers is the same');
    is(scalar keys %{ servers($node, 'sockets') }, 2, 'so there are still two');
    is(curl('--http2-prior-knowledge', $node->url('/', 'h2'))->{status}, 200, 'from a client that speaks HTTP/2');
    my $requests = $backend{unix}->stats->{requests} + $backend{ipv6}->stats->{requests};
    like(curl('--http2-prior-knowledge', '-m', 0.3, $node->url('/?hang=1', 'h2'))->{error}, qr/timed out/, 'which gives up');
    is($backend{unix}->stats->{requests} + $backend{ipv6}->stats->{requests}, $requests + 1, 'in the middle of a request');
    in_flight('sockets', 0, 'none in flight');
};

# Each answer as "server protocol reused", of requests to two servers in turn.
sub tls {
    my ($path, $count) = @_;
    return map {
        my $r = $node->get($path);
        join ' ', $r->{status} == 200 ? $r->{body} : $r->{status}, map { defined $_ ? $_ : '' } @{ $r->{headers} }{qw(x-protocol x-reused)};
    } 1 .. $count;
}

subtest 'TLS: sessions are used again' => sub {
    my @first = ('s1 TLSv1.2 .', 's2 TLSv1.3 .');
    my @later = ('s1 TLSv1.2 r', 's2 TLSv1.3 r');
    # Stock nginx does not free its last sessions when it ends: valgrind would report them, and a
    # suppression would hide ours.
    for my $path ('/tls/', $ENV{TEST_NGINX_USE_VALGRIND} ? () : '/stock_tls/') {
        my @got = tls($path, 6);
        is_deeply([ sort @got[ 0, 1 ] ], \@first, "$path: a new session with each server");
        is_deeply([ sort @got[ 2, 3 ] ], \@later, "$path: used again");
        is_deeply([ sort @got[ 4, 5 ] ], \@later, "$path: and again");
    }
    is_deeply([ sort(tls('/no_reuse/', 2)) ], \@first, 'proxy_ssl_session_reuse off');
    in_flight('tls', 0, 'nothing in flight');

    my @got = tls('/kept_tls/', 6);
    is_deeply([ sort @got[ 4, 5 ] ], \@first, 'with keepalive the whole connection is used again');
    my %session = map { $_ => 1 } tls('/stale_tls/', 6);
    is(join(' ', sort keys %session), 's3 TLSv1.3 . s3 TLSv1.3 r', 'a dead connection is replaced, with the session of before');
    like($node->get('/stale_tls/')->{headers}{'x-status'}, qr/^(?:502, )?200$/, 'by one more try at most');
    is(servers($node, 'stale_tls')->{ $node->address('s3') }{fails}, 0, 'which is no failure');
    in_flight($_, 0, "$_: nothing in flight") for qw(kept_tls stale_tls);
};

subtest 'TLS: handshakes that fail' => sub {
    is(join(' ', map { $node->get('/no_tls/')->{headers}{'x-status'} } 1 .. 4), '502, 200 200 200 200',
        'a server that does not speak it fails, once');
    is(join(' ', map { $node->get('/distrust/')->{headers}{'x-status'} } 1), '502, 502', 'certificates that are not trusted');
    my $silent = RegistryTest->client($node->address('silent'));
    socket my $listener, Socket::PF_INET(), Socket::SOCK_STREAM(), 0 or die;
    setsockopt $listener, Socket::SOL_SOCKET(), Socket::SO_REUSEADDR(), 1;
    bind $listener, Socket::pack_sockaddr_in($node->port('silent'), Socket::INADDR_LOOPBACK()) or die "bind: $!";
    listen $listener, 10;
    my $client = begin('/hung_tls/');
    in_flight('hung_tls', 1, 'in flight while it waits for the handshake');
    is($client->response->{status}, 504, 'a server that says nothing');
    $client = begin('/hung_tls/');
    in_flight('hung_tls', 1, 'again');
    $client->close;
    in_flight($_, 0, "$_: nothing in flight") for qw(no_tls tls hung_tls);
};

$node->log_is_clean;
done_testing;
