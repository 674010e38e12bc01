# A kept connection serves a request only when it is the one that the request itself would
# have made: to the same server, by the same protocol, from the same address, with the same
# TLS context, name and client certificate.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

# Speaks HTTP, FastCGI, SCGI and uwsgi on one address.
my $plain = NumberedBackend->new(name => 'plain');

# Tells of each request the connection and what came with it.
my $tells = 'add_header X-Connection $connection.$connection_requests always; add_header X-From $remote_addr always; add_header X-Name "$ssl_server_name" always; add_header X-Protocol "$ssl_protocol" always;
    add_header X-Reused "$ssl_session_reused" always; add_header X-Client "$ssl_client_s_dn" always;';
my $servers = RegistryTest->nginx(
    workers => 1, modules => [], start => 0, http => qq{
        $tells
        server { listen 0.0.0.0:%%PORT_http%%; return 204; }
        server { listen 127.0.0.1:%%PORT_grpc%% http2; default_type application/grpc; location / { return 200 x; } }
        server {
            listen 0.0.0.0:%%PORT_tls%% ssl;
            ssl_certificate %%DIR%%/good.pem; ssl_certificate_key %%DIR%%/good.key;
            ssl_protocols TLSv1.2 TLSv1.3; ssl_verify_client optional_no_ca;
            return 204;
        }
    },
);
my $dir = $servers->dir;
for my $name (qw(good other c1 c2)) {
    system("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -addext subjectAltName=DNS:$name "
        . "-days 2 -keyout $dir/$name.key -out $dir/$name.pem 2>$dir/openssl.log") == 0 or die slurp("$dir/openssl.log");
}
$servers->start;
my %port = map { $_ => $servers->port($_) } qw(http grpc tls);

my $verify = "proxy_ssl_verify on; proxy_ssl_trusted_certificate $dir/good.pem;";
# Locations and what is in them.
my @tls = (
    [ one          => '' ],
    [ two          => '' ],
    [ verified     => "$verify proxy_ssl_name good;" ],
    [ distrusted   => "proxy_ssl_verify on; proxy_ssl_trusted_certificate $dir/other.pem; proxy_ssl_name good;" ],
    [ old          => 'proxy_ssl_protocols TLSv1.2;' ],
    [ new          => 'proxy_ssl_protocols TLSv1.3;' ],
    [ named        => 'proxy_ssl_server_name on; proxy_ssl_name $arg_name;' ],
    [ unnamed      => 'proxy_ssl_name $arg_name;' ],
    [ fixed        => 'proxy_ssl_server_name on; proxy_ssl_name n1;' ],
    [ checked      => "$verify proxy_ssl_name \$arg_name;" ],
    [ certificate  => "proxy_ssl_certificate \$certificate; proxy_ssl_certificate_key \$key;" ],
    [ static       => "proxy_ssl_certificate $dir/c1.pem; proxy_ssl_certificate_key $dir/c1.key;" ],
);
my $locations = join '', map { "location = /tls/$_->[0] { proxy_pass https://tls; $_->[1] }\n" } @tls;

$locations .= join '', map { my $kind = $_; map {
    my ($name, $lines) = @$_;
    $name =~ /certificate|verified|distrusted|one/ ? "location = /$kind/" . ($name eq 'one' ? 'plain' : $name)
        . " { proxy_pass https://$kind; proxy_ssl_session_reuse on; $lines }\n" : ();
} @tls } qw(kept none);

my $node = RegistryTest->nginx(
    workers => 1, http => qq{
        registry main 256k { }
        map \$arg_c \$certificate { default $dir/\$arg_c.pem; '' ''; }
        map \$arg_c \$key { default $dir/\$arg_c.key; '' ''; }
        upstream plain { registry main; registry_keepalive 64; server @{[ $plain->address ]}; }
        upstream http  { registry main; registry_keepalive 64; server 127.0.0.1:$port{http}; }
        upstream other { registry main; registry_keepalive 64; server 127.0.0.1:$port{http}; }
        upstream tls   { registry main; registry_keepalive 64; server 127.0.0.1:$port{tls}; }
        upstream dual  { registry main; registry_keepalive 64; server 127.0.0.1:$port{tls}; }
        upstream grpc  { registry main; registry_keepalive 64; server 127.0.0.1:$port{grpc} max_fails=0; }
        upstream sessions { registry main; registry_keepalive 8 requests=2; server 127.0.0.1:$port{tls}; }
        upstream kept  { registry main; registry_keepalive 8 requests=1; server 127.0.0.1:$port{tls} max_fails=0; }
        upstream none  { registry main; server 127.0.0.1:$port{tls} max_fails=0; }
        upstream two   { registry main; registry_keepalive 64; registry_balance round_robin; server 127.0.0.1:$port{tls}; server 127.0.0.2:$port{tls}; }
        upstream spare { registry main; registry_keepalive 64; server @{[ free_address() ]}; server 127.0.0.1:$port{tls} backup; }
    }, server => qq{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        add_header X-Status \$upstream_status always;
        proxy_ssl_protocols TLSv1.2 TLSv1.3;
        # So that a connection says no more than what it was made with itself.
        proxy_ssl_session_reuse off;
        location = /http    { proxy_pass http://plain; }
        location = /again   { proxy_pass http://plain; proxy_set_header X-Other 1; proxy_set_header Connection ""; proxy_read_timeout 7s; proxy_buffering off; }
        location = /other   { proxy_pass http://other; }
        location = /https   { proxy_pass https://other; }
        location = /fastcgi { fastcgi_pass plain; fastcgi_keep_conn on; fastcgi_param REQUEST_URI \$request_uri; fastcgi_param REQUEST_METHOD \$request_method; }
        location = /scgi    { scgi_pass plain; scgi_param REQUEST_URI \$request_uri; scgi_param CONTENT_LENGTH 0; }
        location = /uwsgi   { uwsgi_pass plain; uwsgi_param REQUEST_URI \$request_uri; }
        location = /dual    { proxy_pass \$arg_scheme://dual; }
        location /grpc      { grpc_pass grpc://grpc; }
        location = /no_grpc { proxy_pass http://grpc; }
        location = /bind    { proxy_pass http://http; proxy_bind \$arg_from; }
        location = /bound   { proxy_pass http://http; proxy_bind 127.0.0.2; }
        location = /free    { proxy_pass http://http; }
        location = /probed  { proxy_pass http://http; proxy_socket_keepalive on; }
        location = /session/2 { proxy_pass https://sessions; proxy_ssl_session_reuse on; proxy_ssl_protocols TLSv1.2; }
        location = /session/3 { proxy_pass https://sessions; proxy_ssl_session_reuse on; proxy_ssl_protocols TLSv1.3; }
        location = /by_addr { proxy_pass https://two; proxy_ssl_server_name on; proxy_ssl_name s-\$upstream_addr; }
        location = /retried { proxy_pass https://spare; proxy_ssl_server_name on; proxy_ssl_name "s \$upstream_addr"; }
        $locations
    },
);
sub free_address { return RegistryTest->backend(start => 0)->address }

# Each answer as "connection.request", connections numbered as they come here.
my (%known, $known);
sub from_here { %known = (); $known = 0 }
sub at {
    my ($path, $headers) = @_;
    my $r = $node->get($path);
    my ($connection, $request) = number($r) =~ /^(\d+)\.(\d+)$/ or return $r->{status};
    my $number = $known{$connection} ||= ++$known;
    return join ' ', "$number.$request", grep { defined && length } map { $r->{headers}{"x-$_"} } @$headers;
}
sub in_turn { my ($paths, @headers) = @_; return join ', ', map { at($_, \@headers) } @$paths }

subtest 'locations that differ in nothing that a connection is made of share' => sub {
    from_here();
    is(in_turn([qw(/http /again /http)]), '1.1, 1.2, 1.3', 'plain HTTP');
    from_here();
    # nginx 1.22 makes a TLS context for each location.
    my $got = in_turn([qw(/tls/one /tls/two /tls/one)]);
    like($got, qr/^1\.1, (?:1\.2, 1\.3|2\.1, 1\.2)$/, 'TLS, where nginx has one context for both');
};

subtest 'protocols are kept apart' => sub {
    from_here();
    is(in_turn([qw(/http /fastcgi /scgi /uwsgi)]), '1.4, 2.1, 3.1, 4.1', 'each has a connection of its own to the one address');
    is(in_turn([qw(/http /fastcgi)]), '1.5, 2.2', 'and those that keep it get it again');
    from_here();
    is(in_turn([qw(/other /https /other)]), '1.1, 502, 1.2', 'no plain connection for TLS');
    from_here();
    is(in_turn([ map { "/dual?scheme=$_" } qw(https https) ], 'protocol'), '1.1 TLSv1.3, 1.2 TLSv1.3', 'TLS by a variable');
    is(in_turn([ map { "/dual?scheme=$_" } qw(http https) ], 'protocol'), '2.1, 1.3 TLSv1.3', 'no connection with TLS for what is plain');
    from_here();
    my $r = sub { return number($node->get('/grpc/x')) };
    my ($first, $second) = map { $r->() } 1, 2;
    is(int $second, int $first, 'gRPC has its connection');
    # Newer versions of nginx answer HTTP/1.1 there as well.
    like(at('/no_grpc'), qr/^(?:1\.1|502|0)$/, 'that HTTP/1.1 does not get');
    is(int $r->(), int $first, 'and has it after that');
};

subtest 'local addresses' => sub {
    from_here();
    is(in_turn([ map { "/bind?from=127.0.0.$_" } 2, 3, 2, 3 ], 'from'),
        '1.1 127.0.0.2, 2.1 127.0.0.3, 1.2 127.0.0.2, 2.2 127.0.0.3', 'proxy_bind by a variable');
    is(in_turn([qw(/free /bind?from=)], 'from'), '3.1 127.0.0.1, 3.2 127.0.0.1', 'none is another one');
    is(in_turn([ '/bound', '/bind?from=127.0.0.2', '/free' ], 'from'), '1.3 127.0.0.2, 1.4 127.0.0.2, 3.3 127.0.0.1',
        'the same address, fixed or by a variable, shares');
    is(in_turn([qw(/probed /free /probed)]), '4.1, 3.4, 4.2', 'proxy_socket_keepalive');
};

subtest 'TLS contexts' => sub {
    from_here();
    in_turn(['/tls/one']);
    is(in_turn([qw(/tls/old /tls/new /tls/old /tls/new)], 'protocol'), '2.1 TLSv1.2, 3.1 TLSv1.3, 2.2 TLSv1.2, 3.2 TLSv1.3', 'proxy_ssl_protocols');
    is(in_turn([qw(/tls/verified /tls/verified)]), '4.1, 4.2', 'proxy_ssl_verify: not a connection that was not verified');
    is(in_turn([qw(/tls/distrusted /tls/distrusted)]), '502, 502', 'nor one that was, by a certificate that is not trusted here');
    is(in_turn([qw(/tls/static /tls/static)], 'client'), '5.1 CN=c1, 5.2 CN=c1', 'a client certificate');
    like(in_turn([qw(/tls/one /tls/static)], 'client'), qr/^1\.\d+, 5\.3 CN=c1$/, 'that others do not have');
};

subtest 'TLS names' => sub {
    from_here();
    is(in_turn([ map { "/tls/named?name=n$_" } 1, 2, 1, 2 ], 'name'), '1.1 n1, 2.1 n2, 1.2 n1, 2.2 n2', 'proxy_ssl_name by a variable, sent to the server');
    like(in_turn(['/tls/fixed'], 'name'), qr/^(?:1\.3|3\.1) n1$/, 'or fixed, in a context that may be the same');
    from_here();
    like(in_turn([ map { "/tls/unnamed?name=n$_" } 1, 2 ], 'name'), qr/^1\.(\d+), 1\.(?!\1$)\d+$/, 'a name that is neither sent nor verified does not matter');
    from_here();
    is(in_turn([ map { "/tls/checked?name=$_" } qw(good good bad good) ]), '1.1, 1.2, 502, 1.3', 'one that is verified does, sent or not');
    from_here();
    is(in_turn([ ('/by_addr') x 4 ], 'name'), '1.1 s-127.0.0.1, 2.1 s-127.0.0.2, 1.2 s-127.0.0.1, 2.2 s-127.0.0.2',
        'one that names the server that was chosen');
    is($node->get('/retried')->{headers}{'x-status'}, '502, 204', 'and when it is the second one tried');
    is($node->get('/retried')->{status}, 204, 'or the only one');
};

subtest 'a new connection resumes the TLS session of an older one' => sub {
    for my $protocol (2, 3) {
        from_here();
        is(in_turn([ ("/session/$protocol") x 6 ], 'reused'), '1.1 ., 1.2 ., 2.1 r, 2.2 r, 3.1 r, 3.2 r', "TLS 1.$protocol");
    }
};

subtest 'a TLS session is not resumed for what was made differently' => sub {
    for my $keeps (qw(kept none)) {
        from_here();
        is(join(' ', map { at("/$keeps/certificate?c=$_", ['client']) =~ /(\w+)$/ } qw(c1 c2 c1 c2)), 'c1 c2 c1 c2', "$keeps: client certificates");
        is(join(' ', map { $node->get("/$keeps/$_")->{status} } qw(verified distrusted verified plain distrusted verified)),
            '204 502 204 204 502 204', "$keeps: what is trusted");
    }
};

subtest 'client certificates by a variable' => sub {
    from_here();
    is(in_turn([ map { "/tls/certificate?c=$_" } qw(c1 c2 c1 c2) ], 'client'), '1.1 CN=c1, 2.1 CN=c2, 1.2 CN=c1, 2.2 CN=c2', 'each has its own connection');
    is(in_turn([ map { "/tls/certificate?c=$_" } '', 'c1', '' ], 'client'), '3.1, 1.3 CN=c1, 3.2', 'none is another one');
};

nothing_in_flight($node, qw(plain http other tls dual grpc two spare sessions kept none));
$node->log_is_clean;
$servers->log_is_clean;
done_testing;
