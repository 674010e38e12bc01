# registry_keepalive under load, while servers come, go, and are switched off and on: no request
# fails, nothing is left behind.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/keepalive-backend.pl";

my $LOCATIONS = q{
    location /upstream/ { registry_api main; }
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location = /    { proxy_pass http://load; }
    location = /two { proxy_pass http://two; proxy_buffering off; }
    location = /bind { proxy_pass http://load; proxy_bind 127.0.0.$arg_n; }
};
sub http_conf {
    my ($parameters, $more) = @_;
    return "registry main 1m { heartbeat_ttl 1h; cleanup_interval 50ms; }
        upstream load { registry main; registry_balance least_conn @{[ $more || '' ]}; registry_keepalive $parameters; }
        upstream two  { registry main namespace=load; registry_balance round_robin; registry_keepalive $parameters; }";
}
sub call { my ($node, $endpoint, $host, $port, %more) = @_; return api($node, $endpoint, { ns => 'load', host => $host, port => $port, %more })->{status} }

subtest 'servers that change at random, and reloads' => sub {
    my $node = RegistryTest->nginx(workers => 2, http => http_conf('16'), server => $LOCATIONS);
    my @backends = map { RegistryTest->backend(name => $_) } 'a' .. 'h';
    my $steady = shift @backends;
    call($node, 'add', $_->host, $_->port) for $steady, @backends;
    my $load = load_start(conns => 64, url => [ map { $node->url($_) } '/', '/two', '/?delay=0.01', '/bind?n=2', '/two?size=50000', '/bind?n=3' ]);
    my $end = time + 3 * time_scale();
    my @reloads = map { http_conf(@$_) } [ '16 per_server=2' ], [ '64', 'warm' ], [ '4 requests=5' ], [ '16 timeout=50ms time=200ms' ];
    my $reload_at = time;
    my %done;
    while (time < $end) {
        my $b = $backends[ rand @backends ];
        my ($endpoint, %more) = @{ [ ['add'], ['remove'], ['drain'], [ 'toggle', action => 'disable' ], [ 'toggle', action => 'enable' ], ['add'], [ 'weight', weight => int rand 4 ] ]->[ rand 7 ] };
        $done{ call($node, $endpoint, $b->host, $b->port, %more) }++;
        if (@reloads && time >= $reload_at) {
            $node->set_conf(http => shift @reloads);
            ok($node->reload(wait => 'new'), 'a reload');
            $reload_at = time + 0.4 * time_scale();
        }
    }
    my $sum = load_stop($load);
    is_deeply([ $sum->{status}, $sum->{errors} ], [ { 200 => $sum->{requests} }, {} ], "all of $sum->{requests} requests were answered")
        or diag(explain($sum)), $node->diag_log;
    is_deeply([ grep { !/^(?:200|404)$/ } keys %done ], [], 'and so were the calls') or diag(explain(\%done));
    nothing_in_flight($node, 'load');
    ok(wait_until(sub { !$node->old_workers }), 'old workers have gone');
    call($node, 'remove', $_->host, $_->port) for $steady, @backends;
    is(open_at($_, 0), 0, $_->name . ': no connection is left') for $steady, @backends;
    $node->log_is_clean;
};

subtest 'many servers, in turns' => sub {
    my ($ROUNDS, $SERVERS, $REQUESTS) = (10, 100, 2000);
    my $servers = RegistryTest->nginx(workers => 1, worker_connections => 2048, modules => [], log_level => 'error',
        http => 'access_log off; server { listen 0.0.0.0:%%PORT_all%%; keepalive_requests 100000; return 204; }');
    my $port = $servers->port('all');
    my $node = RegistryTest->nginx(workers => 1, worker_connections => 2048, log_level => 'error', http => 'access_log off; ' . http_conf('400 timeout=1s'), server => $LOCATIONS);
    my ($worker) = $node->workers;
    my $rss = sub { return slurp("/proc/$worker/status") =~ /VmRSS:\s+(\d+)/ ? $1 : die };
    my $fds = sub { my @fds = glob "/proc/$worker/fd/*"; return scalar @fds };
    my $base = $fds->();
    my $client = $node->client;
    my ($early, $answered) = (0, 0);
    for my $round (1 .. $ROUNDS) {
        my @hosts = map { "127.4.$round.$_" } 1 .. $SERVERS;
        $client->post('/upstream/add', body => "ns=load&host=$_&port=$port") for @hosts;
        my $sum = parallel(16, $REQUESTS, [ map { $node->url($_) } '/', '/two', '/bind?n=2' ]);
        $answered += $sum->{status}{204} || 0;
        $client->post('/upstream/remove', body => "ns=load&host=$_&port=$port") for @hosts;
        $early = $rss->() if $round == 3;
    }
    is($answered, $ROUNDS * $REQUESTS, 'all requests were answered');
    my $grown = $rss->() - $early;
    cmp_ok($grown, '<', 512, 'the worker needs no more memory in the last round than in the third') or diag("$grown kB of $early kB");
    $client->close;
    my $now;
    ok(wait_until(sub { ($now = $fds->()) <= $base }), 'and no more open files than at first') or diag("$base, $now");
    # Those of servers that stay go by their timeout.
    call($node, 'add', "127.4.0.$_", $port) for 1 .. 20;
    parallel(8, 200, $node->url('/'));
    cmp_ok($fds->(), '>=', $base + 20, 'connections to servers that stay');
    ok(wait_until(sub { ($now = $fds->()) <= $base }, 1 + 0.5 + 1 * time_scale()), 'are closed after their timeout') or diag("$base, $now");
    nothing_in_flight($node, 'load');
    $node->log_is_clean;
};

done_testing;
