# Many requests at once, with one worker and with four: limits hold, counts are exact.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my @backends = map { RegistryTest->backend(name => $_) } qw(a b c);
my %backend = map { $_->name => $_ } @backends;
my $closed = RegistryTest->backend(name => 'closed', start => 0);

sub node {
    my ($workers) = @_;
    my ($a, $b, $c) = map { 'server ' . $_->address } @backends;
    return RegistryTest->nginx(
        workers => $workers,
        http => qq{
            registry main 256k { }
            upstream limited     { registry main; $a max_conns=2; $b max_conns=3; $c max_conns=1; keepalive 4; }
            upstream limited_rr  { registry main namespace=limited; registry_balance round_robin; }
            upstream shared      { registry main; $a; $b; $c; }
            upstream in_turn     { registry main; registry_balance round_robin; $a weight=3; $b weight=2; $c; keepalive 8; }
            upstream mixed       { registry main; $a max_fails=0; $b fail_timeout=1s; $c; server @{[ $closed->address ]} fail_timeout=1s; keepalive 8; }
        },
        server => q{
            location /upstream/ { registry_api main; }
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            location /limited    { proxy_pass http://limited; }
            location /limited_rr { proxy_pass http://limited_rr; }
            location /shared     { proxy_pass http://shared; }
            location /in_turn    { proxy_pass http://in_turn; }
            location /mixed      {
                proxy_pass http://mixed;
                proxy_read_timeout 100ms;
                proxy_next_upstream error timeout http_503 non_idempotent;
                add_header X-Addr $upstream_addr always;
            }
        },
    );
}

sub all_end {
    my ($node, $ns) = @_;
    ok(wait_until(sub { connections($node, $ns) == 0 }), "$ns: nothing is in flight at the end")
        or diag(connections($node, $ns) . ' in flight');
    return;
}

# The highest number of requests that each backend had at once.
sub peaks { return map { my $peak = $_->stats->{max_active}; $peak } @backends }

for my $workers (1, 4) {
    my $node = node($workers);
    subtest "$workers workers: max_conns is never exceeded" => sub {
        for my $path (qw(limited limited_rr)) {
            $_->reset_stats for @backends;
            my $sum = parallel(30, 900, $node->url("/$path?delay=0.005"), procs => 2);
            is($sum->{failed}, 0, "$path: every request is answered");
            is(join(' ', sort keys %{ $sum->{status} }), '200 502', "$path: by a server, or by a 502 when all are full");
            is(join(' ', peaks()), '2 3 1', "$path: each server has had as many as it may have, and never more");
        }
        ok(!$node->grep_log(qr/no eligible server in namespace "limited": (?!3 at max_conns)/), 'a 502 means that all three are full');
        all_end($node, 'limited');
        is(parallel(6, 6, $node->url('/limited?delay=0.2'), keepalive => 0)->{status}{200}, 6, 'there is room for six again');
        all_end($node, 'limited');
    };

    subtest "$workers workers: the counts are those of the servers" => sub {
        my @clients = map { my $c = $node->client; $c->send("GET /shared?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 12;
        ok(wait_until(sub { connections($node, 'shared') == 12 }), 'twelve in flight');
        my $servers = servers($node, 'shared');
        is(join(' ', map { $servers->{ $_->address }{connections} } @backends), '4 4 4', 'evenly on three servers');
        ok(wait_until(sub { join(' ', map { $_->stats->{active} } @backends) eq '4 4 4' }), 'who have as many');
        $_->close for @clients[ 0 .. 4 ];
        ok(wait_until(sub { connections($node, 'shared') == 7 }), 'seven when five clients have gone');
        ok(wait_until(sub {
            my $now = servers($node, 'shared');
            !grep { $now->{ $_->address }{connections} != $_->stats->{active} } @backends;
        }), 'as the servers count');
        $_->close for @clients;
        all_end($node, 'shared');
    };

    subtest "$workers workers: least_conn spares the slow server" => sub {
        $_->reset_stats for @backends;
        $backend{a}->set(delay => 0.05);
        my $sum = parallel(12, 600, $node->url('/shared'), procs => 2);
        is_deeply($sum->{status}, { 200 => 600 }, 'all are answered');
        cmp_ok($sum->{backend}{a}, '<', 120, 'the slow one gets far less than a third');
        cmp_ok($backend{a}->stats->{max_active}, '<=', 8, 'and has no more at once than the others');
        $backend{a}->clear;
        all_end($node, 'shared');
    };

    subtest "$workers workers: round_robin gives exact shares" => sub {
        my $sum = parallel(12, 600, $node->url('/in_turn'), procs => 2);
        is_deeply($sum->{backend}, { a => 300, b => 200, c => 100 }, '600 requests by weights 3, 2, 1');
        my $servers = servers($node, 'in_turn');
        is(join(' ', map { $servers->{ $_->address }{requests} } @backends), '300 200 100', 'which are counted');
        all_end($node, 'in_turn');
    };

    subtest "$workers workers: everything that can go wrong, at once" => sub {
        # b answers 503 and a hangs, now and then; some clients go away.
        my @loads = (
            load_start(conns => 10, url => [ map { $node->url("/mixed?delay=0.002&$_") } qw(size=100 size=200000 close=1 status=503 cut=10&size=1000 reset=1) ]),
            load_start(conns => 10, url => $node->url('/mixed?delay=0.03&size=100000&drip=0.03'), abort_share => 0.5, abort_after => 0.02),
            load_start(conns => 5, url => $node->url('/mixed'), method => 'POST', body => 'x' x 50_000),
            load_start(conns => 3, url => $node->url('/mixed?hang=1'), abort_share => 1, abort_after => 0.05),
        );
        my $worst = 0;
        for (1 .. 40) {
            my $now = connections($node, 'mixed');
            $worst = $now if $now > $worst;
            sleep 0.01;
        }
        my @sums = map { load_stop($_) } @loads;
        cmp_ok($_->{requests} + $_->{aborted}, '>', 0, 'requests were made') for @sums;
        cmp_ok($worst, '>', 0, 'and seen in flight');
        all_end($node, 'mixed');
        # Counted twice or never, a request would show as one that is missing now.
        my @clients = map { my $c = $node->client; $c->send("GET /mixed?delay=0.05 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 9;
        ok(wait_until(sub { connections($node, 'mixed') == 9 }, 2), 'nine more are nine');
        $_->close for @clients;
        all_end($node, 'mixed');
    };

    $node->log_is_clean;
}

done_testing;
