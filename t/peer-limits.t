# Requests that fail because nginx, or the server, has run out of something: the server that
# had been chosen for them is given back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $backend = RegistryTest->backend(name => 'a');

sub node {
    my (%opt) = @_;
    return RegistryTest->nginx(
        workers => 1,
        http => 'registry main 256k { } upstream app { registry main; server ' . $backend->address . '; }',
        server => q{
            location /upstream/ { registry_api main; }
            location / { proxy_pass http://app; }
        },
        %opt,
    );
}

# Opens requests that stay in flight until one of them fails. Returns them, and the client that failed,
# with its response.
#
# Each takes two connections, so the last client may find one for itself or none. One more client,
# which waits with half of a request, gives its own up when there was none.
sub exhaust {
    my ($node) = @_;
    my $spare = $node->client;
    $spare->send("POST /upstream/add HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    my @held;
    for (1 .. 200) {
        my $requests = $backend->stats->{requests};
        my $client = $node->client;
        $client->send("GET /?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        my $there = wait_until(sub { $backend->stats->{requests} > $requests || readable($client) }, 3);
        if ($there && !readable($client)) {
            push @held, $client;
            next;
        }
        # Nothing at all, or closed at once: it was not even accepted.
        my $response = readable($client) ? $client->response : undef;
        if (!$response || !$response->{status}) {
            $spare->close;
            $client = $node->client if $response;
            $client->send("GET /?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n") if $response;
            $response = $client->response;
        }
        $spare->close;
        return ($response, @held);
    }
    die "200 requests, and nothing was exhausted\n";
}

sub readable {
    my ($client) = @_;
    my $bits = '';
    vec($bits, fileno $client->socket, 1) = 1;
    return select $bits, undef, undef, 0;
}

sub exhausted_and_back {
    my ($node, $line) = @_;
    my ($response, @held) = exhaust($node);
    is($response->{status}, 500, 'a request for which there is no connection to its server fails');
    cmp_ok(scalar @held, '>', 3, 'others are in flight');
    my $client = shift @held;
    $client->close;
    my $count = wait_until(sub { eval { connections($node, 'app') == @held } });
    ok($count, 'only those are counted') or diag(connections($node, 'app') . ' instead of ' . @held);
    is($node->get('/')->{status}, 200, 'with one less there is room again');
    $_->close for @held;
    ok(wait_until(sub { connections($node, 'app') == 0 }), 'none in flight at the end');
    is(servers($node, 'app')->{ $backend->address }{fails}, 0, 'the server is not to blame');
    return scalar $node->grep_log($line);
}

subtest 'worker_connections are not enough' => sub {
    my $node = node(worker_connections => 24);
    my $lines = exhausted_and_back($node, qr/\[alert\].*24 worker_connections are not enough$|24 worker_connections are not enough while/);
    cmp_ok($lines, '>=', 1, 'the log says what was missing');
    $node->log_is_clean(allow => [ [ qr/24 worker_connections are not enough/, $lines ] ]);
};

subtest 'no more files' => sub {
    my $node = node(main => 'worker_rlimit_nofile 32;');
    my $lines = exhausted_and_back($node, qr/socket\(\) failed \(24: Too many open files\)/);
    is($lines, 1, 'the log says what was missing');
    $node->log_is_clean(allow => [ [ qr/\[alert\].*socket\(\) failed \(24: Too many open files\) while connecting to upstream/, 1 ] ]);
};

subtest 'a server that takes no more' => sub {
    my $full = RegistryTest->backend(name => 'full', backlog => 1);
    my $node = node(
        http => 'registry main 256k { } upstream app { registry main; server ' . $full->address . '; }'
            . 'upstream two { registry main; registry_balance round_robin; server ' . $full->address . '; server ' . $backend->address . '; }',
        server => q{
            location /upstream/ { registry_api main; }
            proxy_connect_timeout 200ms;
            proxy_send_timeout 200ms;
            client_max_body_size 100m;
            location /     { proxy_pass http://app; }
            location /body { proxy_pass http://app; proxy_request_buffering off; }
            location /two  { proxy_pass http://two; add_header X-Status $upstream_status always; }
        });
    ok($full->pause, 'it accepts nothing, reads nothing');
    my $r = $node->post('/body', body => 'x' x 30_000_000);
    is($r->{status}, 504, 'proxy_send_timeout');
    like(($node->grep_log(qr/upstream timed out/))[-1], qr/while sending request to upstream/, 'while sending');
    ok(wait_until(sub { connections($node, 'app') == 0 }), 'nothing in flight');

    # The kernel completes connections for it until the backlog is full.
    my @waiting;
    wait_until(sub {
        my $client = RegistryTest->client($full->url);
        push @waiting, $client;
        return !eval { $client->open(timeout => 0.2); 1 };
    }) or die "a backlog without end\n";
    my $client = $node->client;
    $client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { connections($node, 'app') == 1 }), 'in flight while it connects');
    is($client->response->{status}, 504, 'proxy_connect_timeout');
    like(($node->grep_log(qr/upstream timed out/))[-1], qr/while connecting to upstream/, 'while connecting');
    is(connections($node, 'app'), 0, 'nothing in flight');

    $client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { connections($node, 'app') == 1 }), 'in flight while it connects');
    $client->close;
    ok(wait_until(sub { connections($node, 'app') == 0 }), 'a client that goes meanwhile');

    my @statuses = map { $node->get('/two')->{headers}{'x-status'} } 1 .. 3;
    is(scalar(grep { $_ eq '504, 200' } @statuses), 1, 'another server answers in its place');
    is(scalar(grep { $_ eq '200' } @statuses), 2, 'and it is left alone');
    $_->close for @waiting;
    $full->resume;
    $node->log_is_clean;
};

done_testing;
