# type=https: what is asked for through TLS, and what can go wrong there.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/health.pl";
require "$FindBin::Bin/hostile.pl";

our $node;
my $certificates = RegistryTest::Redis->certificates;
my $own = "ssl_certificate $certificates/server.pem; ssl_certificate_key $certificates/server.key;";
my $tls = RegistryTest->nginx(modules => [], workers => 1, http => qq{
    log_format seen '\$ssl_protocol "\$ssl_server_name" "\$http_host" \$request \$status';
    access_log %%DIR%%/logs/seen.log seen;
    server { listen 127.0.0.1:%%PORT%% ssl; $own
        location / { return 200 well; } location /bad { return 503; }
        location /big { alias %%DIR%%/html/big; } }
    server { listen 127.0.0.1:%%PORT_new%% ssl; $own ssl_protocols TLSv1.3; return 200 well; }
    server { listen 127.0.0.1:%%PORT_old%% ssl; $own ssl_protocols TLSv1.2; return 200 well; }
    server { listen 127.0.0.1:%%PORT_client%% ssl; $own ssl_client_certificate $certificates/ca.pem; ssl_verify_client on; return 200 well; }
    server { listen 127.0.0.1:%%PORT_refuses%% ssl; $own ssl_reject_handshake on; }
    server { listen 127.0.0.1:%%PORT_http%%; return 200 well; }
    server { listen unix:%%DIR%%/tls.sock ssl; $own access_log off; return 200 well; }
});
spew($tls->dir . '/html/big', 'x' x 200_000 . 'well');
my @check = ('type=https', 'fails=1', 'passes=1', 'timeout=' . ms(1));
$node = checked({
    plain => [@check],
    named => [ @check, 'host=shop.example', 'uri=/where?a=1' ],
    body  => [ @check, 'body~well$', 'uri=/big' ],
    bad   => [ @check, 'uri=/bad' ],
    line  => { check => [@check], upstream => 'server unix:' . $tls->dir . '/tls.sock;' },
    other => [ 'type=https', 'fails=1', 'passes=1', 'timeout=' . ms(0.3) ],
}, server => 'location = /through { proxy_ssl_session_reuse off; proxy_pass https://' . $tls->address . '/; }');
sub seen { my ($last) = reverse split /\n/, slurp($tls->dir . '/logs/seen.log'); return $last || '' }
sub well {
    my ($registry, $addr, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    call($registry, add => $addr) unless $addr =~ /^unix/;
    my $health = after_checks($registry, $addr, 2, $name);
    is($health->{fails}, 0, 'passes') or diag($health->{last_error});
    call($registry, remove => $addr) unless $addr =~ /^unix/;
    return;
}
sub unwell {
    my ($registry, $addr, $reason, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    call($registry, add => $addr);
    becomes($registry, $addr, 'unhealthy', $name);
    my $error = health($registry, $addr)->{last_error};
    like($error, $reason, "\"$error\"");
    call($registry, remove => $addr);
    return;
}

subtest 'what passes' => sub {
    well('plain', $tls->address, 'a certificate that nobody signed for us');
    my $address = $tls->address;
    like(seen(), qr{^TLSv1.[23] "[^"]*" "\Q$address\E" GET / HTTP/1.1 200$}, 'asked for as by HTTP');
    well('named', $tls->address, 'with a name');
    like(seen(), qr{^TLSv1.[23] "shop.example" "shop.example" GET /where\?a=1 HTTP/1.1 200$}, 'it is sent in the handshake and in the request');
    well('plain', $tls->address('new'), 'TLS 1.3');
    like(seen(), qr/^TLSv1.3 /, 'alone');
    well('plain', $tls->address('old'), 'TLS 1.2');
    like(seen(), qr/^TLSv1.2 /, 'alone');
    well('body', $tls->address, 'a body of several records');
    well('line', 'unix:' . $tls->dir . '/tls.sock', 'a unix socket');
};

subtest 'what does not' => sub {
    unwell('bad', $tls->address, qr/^status 503$/, 'a status');
    unwell('plain', $tls->address('http'), qr/^TLS handshake failed$/, 'a server that speaks plain HTTP');
    unwell('plain', $tls->address('refuses'), qr/^TLS handshake failed$/, 'one that refuses the handshake');
    unwell('plain', $tls->address('client'), qr/^(?:status 400|TLS handshake failed)$/, 'one that wants to know us');
    my $gone = RegistryTest->backend(start => 0);
    unwell('plain', $gone->address, qr/^connect refused$/, 'one that is not there');
    my $probed = RegistryTest->probed;
    my %scripts = (
        'says nothing'      => [ [], qr/^timeout$/ ],
        'closes at once'    => [ ['close'], qr/^(?:connection closed|TLS handshake failed)$/ ],
        'resets'            => [ ['reset'], qr/^(?:connection closed|TLS handshake failed)$/ ],
        'speaks HTTP first' => [ [ [ send => "HTTP/1.1 200 OK\r\n\r\n" ] ], qr/^TLS handshake failed$/ ],
        'sends noise'       => [ [ [ stream => join '', map { chr } reverse 0 .. 255 ] ], qr/^TLS handshake failed$/ ],
        'sends an alert'    => [ [ [ send => "\x15\x03\x03\x00\x02\x02\x28" ], 'close' ], qr/^TLS handshake failed$/ ],
        'drips'             => [ [ [ drip => "\x16\x03\x03\x3f\xff\x02" . "\0" x 10, 0.05 ] ], qr/^timeout$/ ],
        'never ends a record' => [ [ [ send => "\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb\x03\x03" ] ], qr/^timeout$/ ],
    );
    for my $name (sort keys %scripts) {
        $probed->behave($scripts{$name}[0]);
        unwell('other', $probed->address, $scripts{$name}[1], "one that $name");
    }
};

subtest 'none of it stays' => sub {
    my @servers = ($tls->address, $tls->address('new'), $tls->address('refuses'));
    my $probed = RegistryTest->probed(count => 4);
    $probed->behave(['close'], 0);
    $probed->behave([ [ stream => 'noise' x 1000 ] ], 1);
    $probed->behave([], 2);
    $probed->behave([ 'reset' ], 3);
    call('other', add => $_) for @servers, $probed->addresses;
    slowest(1.5 * time_scale(), '/through');
    my @workers = $node->workers;
    my ($before) = memory($node);
    my @open = map { descriptors($_) } @workers;
    # Requests through TLS in the same workers: what a handshake that failed leaves behind would disturb them.
    my ($most) = slowest(3 * time_scale(), '/through');
    my ($after) = memory($node);
    my @now = map { descriptors($_) } @workers;
    note("$before kB before, $after kB after; descriptors @open, then @now; slowest " . int(1000 * $most) . ' ms');
    cmp_ok($after - $before, '<', 1024 * @workers, 'memory') if time_scale() == 1;
    cmp_ok($now[$_], '<=', $open[$_] + 7, 'descriptors') for 0 .. $#workers;
    cmp_ok($most, '<', 0.2 * time_scale(), 'no request waited');
    call('other', remove => $_) for @servers, $probed->addresses;
};

# A handshake that fails is the server's fault, and is told with the others.
my @others = grep { !/\[(?:info|notice)\]|registry "\w+": server/ } split /\n/, $node->error_log;
is(join("\n", @others), '', 'the log has no lines of OpenSSL');
$node->log_is_clean;
$tls->log_is_clean;
done_testing;
