# "registry_balance least_conn warm": of servers that are equally loaded, one that the worker
# has a connection to.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my @names = 'a' .. 'h';
my %backend = map { $_ => NumberedBackend->new(name => $_) } @names;
my $node = RegistryTest->nginx(
    workers => 1, http => 'registry main 1m { }
        upstream warm { registry main; registry_balance least_conn warm; registry_keepalive 64; }
        upstream cold { registry main namespace=warm; registry_balance least_conn; registry_keepalive 64; }
        upstream aged { registry main; registry_balance least_conn warm; registry_keepalive 64 requests=3; }
        upstream spare { registry main; registry_balance least_conn warm; registry_keepalive 64; server ' . $backend{a}->address
            . '; server ' . $backend{b}->address . ' backup; }',
    server => q{
        location /upstream/ { registry_api main; }
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location = /warm  { proxy_pass http://warm; }
        location = /cold  { proxy_pass http://cold; }
        location = /aged  { proxy_pass http://aged; }
        location = /spare { proxy_pass http://spare; }
    },
);
sub call { my ($endpoint, $name, %more) = @_; return api($node, $endpoint, { ns => 'warm', host => $backend{$name}->host, port => $backend{$name}->port, %more }) }
sub to { my ($path) = @_; return $node->get($path)->{headers}{'x-backend'} || 'none' }
sub at_servers {
    my ($path, $count) = @_;
    my %to;
    $to{ to($path) }++ for 1 .. $count;
    return \%to;
}
# Requests that stay; how many each server has.
sub held {
    my ($path, $count) = @_;
    my @clients = map {
        my $client = $node->client;
        $client->send("GET $path?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        my $now = $_;
        wait_until(sub { connections($node, 'warm') == $now });
        $client;
    } 1 .. $count;
    my $servers = servers($node, 'warm');
    my %on = map { $_ => $servers->{ $backend{$_}->address }{connections} } @names;
    $_->close for @clients;
    wait_until(sub { connections($node, 'warm') == 0 });
    return %on;
}
sub spread { my (%on) = @_; my @sorted = sort { $a <=> $b } values %on; return $sorted[-1] - $sorted[0] }

call('add', $_) for @names;

subtest 'little traffic' => sub {
    my $cold = at_servers('/cold', 16);
    is_deeply($cold, { map { $_ => 2 } @names }, 'least_conn: each server in its turn');
    my $warm = at_servers('/warm', 40);
    is(scalar keys %$warm, 1, 'warm: all requests to one server');
    my ($one) = keys %$warm;
    is($node->get('/warm')->{headers}{'x-backend'}, $one, 'the same');
    like(number($node->get('/warm')), qr/\.42$/, 'on one connection');
    is(scalar keys %{ at_servers('/aged', 0) }, 0, 'nothing yet in another upstream');
    my @two = at_once($node, 2, '/warm');
    my %now = map { $_->{headers}{'x-backend'} => 1 } @two;
    is(scalar keys %now, 2, 'two at once go to two servers');
    is(scalar(grep { !$now{$_} } keys %{ at_servers('/warm', 20) }), 0, 'and what comes alone to one of these');
};

subtest 'much traffic is spread as by least_conn' => sub {
    for my $count (3, 8, 20, 64) {
        cmp_ok(spread(held('/warm', $count)), '<=', 1, "$count at once: no server has two more than another");
    }
    my $sum = parallel(24, 960, $node->url('/warm?delay=0.01'), keepalive => 0);
    is_deeply($sum->{status}, { 200 => 960 }, 'and a load') or diag(explain($sum));
    my @counts = sort { $a <=> $b } map { $sum->{backend}{$_} || 0 } @names;
    cmp_ok($counts[0], '>', 0, 'of which each server has some') or diag("@counts");
};

subtest 'weights' => sub {
    call('weight', a => weight => 3);
    my %on = held('/warm', 20);
    is_deeply(\%on, { a => 6, map { $_ => 2 } 'b' .. 'h' }, 'a server of weight 3 has three times as many') or diag(explain(\%on));
    call('weight', a => weight => 0);
    %on = held('/warm', 14);
    is_deeply(\%on, { a => 0, map { $_ => 2 } 'b' .. 'h' }, 'one of weight 0 has none, connections to it or not');
    call('weight', a => weight => 1);
};

subtest 'a warm server that may not be chosen' => sub {
    my %ways = (
        disabled => [ sub { call('toggle', $_[0], action => 'disable') }, sub { call('toggle', $_[0], action => 'enable') } ],
        draining => [ sub { call('drain', $_[0]) }, sub { call('toggle', $_[0], action => 'enable') } ],
        removed  => [ sub { call('remove', $_[0]) }, sub { call('add', $_[0]) } ],
        'at weight 0' => [ sub { call('weight', $_[0], weight => 0) }, sub { call('weight', $_[0], weight => 1) } ],
    );
    for my $way (sort keys %ways) {
        my $one = to('/warm');
        is(to('/warm'), $one, "$one is warm");
        $ways{$way}[0]->($one);
        ok(!at_servers('/warm', 10)->{$one}, "$way: it has no requests, from the next on");
        $ways{$way}[1]->($one);
    }
    # max_conns
    my $one = to('/warm');
    call('add', $one, max_conns => 1);
    my $client = $node->client;
    $client->send("GET /warm?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { connections($node, 'warm') == 1 }), 'a request');
    ok(!at_servers('/warm', 10)->{$one}, 'at max_conns others have the next');
    $client->close;
    call('add', $one, max_conns => 0);
};

subtest 'failures' => sub {
    ok(wait_until(sub { connections($node, 'warm') == 0 }), 'nothing is in flight');
    my $one = to('/warm');
    $backend{$one}->set(close => 1);
    my $r = $node->get('/warm');
    is($r->{status}, 200, 'a request whose warm server fails goes on to another');
    isnt($r->{headers}{'x-backend'}, $one, 'not the same again');
    ok(!at_servers('/warm', 10)->{$one}, 'and it has none for a while');
    $backend{$one}->clear;
    is_deeply(at_servers('/spare', 5), { a => 5 }, 'a backup is not asked');
    $backend{a}->set(close => 1);
    is(to('/spare'), 'b', 'until it has to');
    $backend{a}->clear;
    is_deeply(at_servers('/spare', 3), { b => 3 }, 'then it is');
};

nothing_in_flight($node, qw(warm spare));
$node->log_is_clean;
done_testing;
