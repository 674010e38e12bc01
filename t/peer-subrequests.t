# Requests within requests: SSI, auth_request, mirror, X-Accel-Redirect, slice, cache updates.
# Each is counted while it is on its server, and no longer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

# A service for each part, so that its count can be told from the others'.
my @services = qw(app auth copy inner gone);
my %backend = map { $_ => RegistryTest->backend(name => $_) } @services;
$backend{gone}->stop;
my $page = RegistryTest->backend(name => 'page', type => 'text/html', body => join ' ', map {
    '<!--# include virtual="' . $_ . '" -->'
} '/part/1?body=one', '/part/2?body=two', '/missing', '/part/3?body=three');

my $node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 256k { }'
        . join('', map { "upstream $_ { registry main; server " . $backend{$_}->address . "; keepalive 4; }\n" } @services)
        . 'upstream page { registry main; server ' . $page->address . '; }'
        . q{
            upstream file { registry main; server 127.0.0.1:%%PORT_file%%; server unix:%%DIR%%/file.sock; keepalive 4; }
            proxy_cache_path %%DIR%%/cache keys_zone=cache:1m;
            server { listen 127.0.0.1:%%PORT_file%%; listen unix:%%DIR%%/file.sock; root %%DIR%%/html; }
        },
    server => q{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        add_header X-Addr $upstream_addr always;

        location /       { proxy_pass http://app; }
        location /page   { proxy_pass http://page; ssi on; }
        location /part/  { proxy_pass http://app; }
        location /missing { proxy_pass http://gone; }

        location /private/ { proxy_pass http://app; auth_request /auth; }
        location = /auth {
            internal;
            proxy_pass http://auth/?$http_x_auth;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
        }

        location /mirrored/ { proxy_pass http://app; mirror /copy; }
        location /bodiless/ { proxy_pass http://app; mirror /head; mirror_request_body off; }
        location /to_nobody/ { proxy_pass http://app; mirror /missing; }
        location = /copy { internal; proxy_pass http://copy/?$http_x_copy; proxy_read_timeout 500ms; }
        location = /head {
            internal;
            proxy_pass http://copy;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection "";
        }

        location /redirect/ { proxy_pass http://app; }
        location /inner/ { internal; proxy_pass http://inner; }

        location /sliced/ { proxy_pass http://file/; slice 1k; proxy_set_header Range $slice_range; proxy_set_header Connection ""; }
        location /after/ { proxy_pass http://app; post_action /copy; }

        location /cached/ {
            proxy_pass http://app;
            proxy_cache cache;
            proxy_cache_key $uri;
            proxy_cache_valid 200 1s;
            proxy_cache_lock on;
            proxy_cache_background_update on;
            proxy_cache_use_stale updating error;
            add_header X-Cache $upstream_cache_status;
        }
    },
);

sub flights { return map { $_ => connections($node, $_) } @_ }

# Waits until just these requests are in flight: (service => number, ...).
sub in_flight {
    my ($what, %expected) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my @known = (@services, 'page', 'file');
    my $expected = join ' ', map { "$_=" . ($expected{$_} || 0) } @known;
    my $now;
    wait_until(sub {
        my %now = flights(@known);
        $now = join ' ', map { "$_=$now{$_}" } @known;
        return $now eq $expected;
    });
    return is($now, $expected, $what);
}
sub ends { my ($what) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return in_flight("$what: nothing in flight") }

sub begin {
    my ($path, $method, %opt) = @_;
    my $client = $node->client;
    $client->send(RegistryTest::Client::format_request($method || 'GET', $path, %opt));
    return $client;
}

subtest 'SSI' => sub {
    $backend{app}->pause;
    my $client = begin('/page');
    in_flight('three parts at once', app => 3);
    $backend{app}->resume;
    my $r = $client->response;
    like($r->{body}, qr/^one two .*502 Bad Gateway.* three$/s, 'all parts in their places, and the error of one');
    ends('SSI');
    $backend{app}->pause;
    my @many = map { begin('/page') } 1 .. 5;
    in_flight('five pages', app => 15);
    $backend{app}->resume;
    is(scalar(grep { $_->response->{body} =~ /^one.*three$/s } @many), 5, 'are answered');
    ends('five pages');
    $backend{app}->pause;
    $client = begin('/page');
    in_flight('a client that', app => 3);
    $client->close;
    ends('goes meanwhile');
    $backend{app}->resume;
};

subtest 'auth_request' => sub {
    my $ask = sub { $node->get('/private/?' . $_[1], headers => { 'X-Auth' => $_[0] })->{status} };
    is($ask->('status=204', ''), 200, 'allowed');
    is($ask->('status=401', ''), 401, 'not allowed');
    is($ask->('status=403', ''), 403, 'forbidden');
    is($ask->('status=500', ''), 500, 'an error');
    is($ask->('close=1', ''), 500, 'no answer');
    is($ask->('', 'status=503'), 503, 'allowed, but the service fails');
    ends('auth_request');
    $backend{auth}->pause;
    my $client = begin('/private/?hang=1', 'POST', body => 'x' x 10_000);
    in_flight('first the question', auth => 1);
    $backend{auth}->resume;
    in_flight('then the request', app => 1);
    $client->close;
    ends('a client that goes');
    $client = begin('/private/', 'GET', headers => { 'X-Auth' => 'hang=1' });
    in_flight('a question', auth => 1);
    $client->close;
    ends('nobody waits for');
};

subtest 'mirror' => sub {
    my $before = $backend{copy}->stats->{requests};
    is($node->post('/mirrored/', body => 'x' x 10_000)->{status}, 200, 'a request');
    ok(wait_until(sub { $backend{copy}->stats->{requests} == $before + 1 }), 'is copied');
    is($backend{copy}->stats->{last}{body}, 'x' x 10_000, 'with its body');
    is($node->post('/bodiless/', body => 'x' x 10_000)->{status}, 200, 'another');
    ok(wait_until(sub { $backend{copy}->stats->{requests} == $before + 2 }), 'is copied');
    is($backend{copy}->stats->{last}{body}, '', 'without');
    ends('mirror');
    my $client = begin('/mirrored/', 'GET', headers => { 'X-Copy' => 'hang=1' });
    is($client->response->{status}, 200, 'a copy that hangs holds up no answer');
    $client->close;
    in_flight('it alone is in flight, with the client gone too', copy => 1);
    ends('when its time is up');
    $client = begin('/mirrored/?hang=1', 'GET');
    in_flight('a copy that is answered first', app => 1);
    $client->close;
    ends('mirror');
    is($node->get('/mirrored/', headers => { 'X-Copy' => 'close=1' })->{status}, 200, 'a copy that fails');
    is($node->get('/to_nobody/')->{status}, 200, 'one to a server that is gone');
    ends('mirror');
};

subtest 'X-Accel-Redirect' => sub {
    my $r = $node->get('/redirect/?header=X-Accel-Redirect:/inner/%3Fbody=found');
    is("$r->{status} $r->{body}", '200 found', 'the other upstream answers');
    is($r->{headers}{'x-addr'}, join(' : ', map { $backend{$_}->address } qw(app inner)), 'after the first');
    my $client = begin('/redirect/?header=X-Accel-Redirect:/inner/%3Fhang=1');
    in_flight('the first is no longer in flight', inner => 1);
    $client->close;
    ends('X-Accel-Redirect');
    is($node->get('/redirect/?header=X-Accel-Redirect:/missing')->{status}, 502, 'to a server that is gone');
    ends('X-Accel-Redirect');
};

subtest 'slices' => sub {
    my $text = join '', map { "line $_\n" } 1 .. 1000;
    spew($node->dir . '/html/file', $text);
    is($node->get('/sliced/file')->{body}, $text, 'a file in slices of 1k');
    my $requests = 0;
    $requests += $_->{requests} for values %{ servers($node, 'file') };
    is($requests, 1 + int length($text) / 1024, 'each of which is a request');
    is($node->get('/sliced/file', headers => { Range => 'bytes=2000-2999' })->{body}, substr($text, 2000, 1000), 'a range');
    ends('slices');
};

subtest 'post_action' => sub {
    my $before = $backend{copy}->stats->{requests};
    is($node->get('/after/')->{status}, 200, 'a request');
    ok(wait_until(sub { $backend{copy}->stats->{requests} > $before }), 'after which another is made');
    ends('post_action');
};

subtest 'cache' => sub {
    my $cached = sub { my $r = $node->get("/cached/$_[0]"); return "$r->{status} $r->{headers}{'x-cache'} $r->{body}" };
    is($cached->('a?body=1'), '200 MISS 1', 'asked for once');
    my $requests = $backend{app}->stats->{requests};
    is($cached->('a?body=2'), '200 HIT 1', 'and no more');
    is($backend{app}->stats->{requests}, $requests, 'no server is asked');

    $backend{app}->pause;
    my @clients = map { begin('/cached/b?body=3') } 1 .. 5;
    in_flight('the same for many at once: one of them asks', app => 1);
    $backend{app}->resume;
    is(join(' ', map { $_->response->{body} } @clients), '3 3 3 3 3', 'all are answered');
    is($backend{app}->stats->{requests}, $requests + 1, 'by one request');
    ends('cache');

    $backend{app}->pause;
    ok(wait_until(sub { $cached->('a?body=4') eq '200 STALE 1' }), 'too old: answered all the same');
    in_flight('while it is asked for anew', app => 1);
    is($cached->('a?body=5'), '200 UPDATING 1', 'once');
    $backend{app}->resume;
    ok(wait_until(sub { $cached->('a?body=4') =~ /^200 HIT 4/ }), 'then the new one is there');
    ends('background update');
    $backend{app}->kill;
    ok(wait_until(sub { $cached->('a') =~ /^200 STALE 4/ }), 'too old again, and the server is gone');
    ends('background update that fails');
    is($node->get('/cached/c')->{status}, 502, 'what is not there');
    ends('cache');
};

$node->log_is_clean;
done_testing;
