# Retries: as many as proxy_next_upstream and its limits allow, never the same server
# twice. Each scenario is run with an upstream of a registry and with a stock one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = (
    (map { $_ => RegistryTest->backend(name => $_) } qw(good also)),
    (map { $_ => RegistryTest->backend(name => $_, close => 1) } qw(closes1 closes2 closes3)),
    (map { $_ => RegistryTest->backend(name => $_, start => 0) } qw(refuses1 refuses2 refuses3)),
    (map { $_ => RegistryTest->backend(name => $_, hang => 1) } qw(hangs1 hangs2 hangs3)),
    s404 => RegistryTest->backend(name => 's404', status => 404),
    t404 => RegistryTest->backend(name => 't404', status => 404),
    s503 => RegistryTest->backend(name => 's503', status => 503),
    s500 => RegistryTest->backend(name => 's500', status => 500),
);
my %name = map { $backend{$_}->address => $_ } keys %backend;

# name => [ servers, in the order in which the first request tries them; directives ]
my %scenarios = (
    first_answers   => [ [qw(good closes1)], '' ],
    second_answers  => [ [qw(refuses1 good)], '' ],
    third_answers   => [ [qw(refuses1 closes1 good)], '' ],
    timeouts        => [ [qw(hangs1 good)], 'proxy_read_timeout 200ms;' ],
    all_refuse      => [ [qw(refuses1 refuses2 refuses3)], '' ],
    all_close       => [ [qw(closes1 closes2 closes3)], '' ],
    all_hang        => [ [qw(hangs1 hangs2)], 'proxy_read_timeout 150ms;' ],
    off             => [ [qw(refuses1 good)], 'proxy_next_upstream off;' ],
    only_timeout    => [ [qw(closes1 good)], 'proxy_next_upstream timeout;' ],
    tries_2         => [ [qw(refuses1 refuses2 good)], 'proxy_next_upstream_tries 2;' ],
    tries_1         => [ [qw(refuses1 good)], 'proxy_next_upstream_tries 1;' ],
    tries_9         => [ [qw(refuses1 refuses2 refuses3)], 'proxy_next_upstream_tries 9;' ],
    time_is_up      => [ [qw(hangs1 hangs2 good)], 'proxy_read_timeout 300ms; proxy_next_upstream_timeout 400ms;' ],
    status          => [ [qw(s503 s500 good)], 'proxy_next_upstream http_500 http_503;' ],
    status_not_said => [ [qw(s503 s500 good)], 'proxy_next_upstream http_503;' ],
    status_to_last  => [ [qw(s503 s500)], 'proxy_next_upstream http_500 http_503;' ],
    not_found       => [ [qw(s404 t404)], 'proxy_next_upstream http_404;' ],
    not_found_there => [ [qw(s404 good)], 'proxy_next_upstream http_404;' ],
    backup          => [ [ qw(refuses1 refuses2), 'good backup' ], '' ],
    backups         => [ [ 'refuses1', 'refuses2 backup', 'good backup' ], '' ],
    tries_to_backup => [ [ qw(refuses1 refuses2), 'good backup' ], 'proxy_next_upstream_tries 2;' ],
    down            => [ [ 'refuses1', 'also down', 'good' ], '' ],
    many            => [ [ map { "127.0.0.$_:%%PORT_closed%%" } 2 .. 80 ], '' ],
    post            => [ [qw(closes1 good)], '' ],
    post_refused    => [ [qw(refuses1 good)], '' ],
    post_safe       => [ [qw(closes1 good)], 'proxy_next_upstream error non_idempotent;' ],
    post_status     => [ [qw(s503 good)], 'proxy_next_upstream http_503;' ],
    unbuffered      => [ [qw(closes1 good)], 'proxy_request_buffering off; proxy_http_version 1.1;' ],
    unbuffered_none => [ [qw(refuses1 good)], 'proxy_request_buffering off; proxy_http_version 1.1;' ],
    put             => [ [qw(closes1 good)], '' ],
);

my ($http, $server) = ('registry main 256k { }', '');
for my $name (sort keys %scenarios) {
    my ($list, $directives) = @{ $scenarios{$name} };
    my $servers = join ' ', map {
        my ($first, $more) = split / /, $_, 2;
        my $address = $backend{$first} ? $backend{$first}->address : $first;
        "server $address " . ($more || '') . ';';
    } @$list;
    $http .= "upstream registry_$name { registry main namespace=$name; registry_balance round_robin; $servers }\n"
        . "upstream stock_$name { $servers }\n";
    $server .= "location = /$_/$name { proxy_pass http://${_}_$name; $directives }\n" for qw(registry stock);
}
my $node = RegistryTest->nginx(
    workers => 1,
    http => $http,
    server => qq{
        location /upstream/ { registry_api main; }
        add_header X-Addr \$upstream_addr always;
        add_header X-Status \$upstream_status always;
        client_body_buffer_size 1k;
        $server
    },
);

# "status: server status, server status"
sub seen {
    my ($r) = @_;
    my @addresses = split /, /, $r->{headers}{'x-addr'};
    my @statuses = split /, /, $r->{headers}{'x-status'};
    return "$r->{status}: " . join ', ', map { ($name{ $addresses[$_] } || $addresses[$_]) . " $statuses[$_]" } 0 .. $#statuses;
}

# A first request, to fresh servers: the order is that of the configuration.
sub first {
    my ($name, $expected, $how, $method, %opt) = @_;
    my %got = map {
        ($_ => seen(RegistryTest::Client::http($method || 'GET', $node->url("/$_/$name"), %opt)));
    } qw(registry stock);
    is($got{registry}, $expected, "$name: $how");
    is($got{registry}, $got{stock}, "$name: as stock");
    is(connections($node, $name), 0, "$name: nothing stays in flight");
    return;
}

first(first_answers   => '200: good 200', 'no need for a second');
first(second_answers  => '200: refuses1 502, good 200', '$upstream_addr lists what was tried');
first(third_answers   => '200: refuses1 502, closes1 502, good 200', 'in order');
first(timeouts        => '200: hangs1 504, good 200', 'after a timeout');
first(all_refuse      => '502: refuses1 502, refuses2 502, refuses3 502', 'each once, and no more');
first(all_close       => '502: closes1 502, closes2 502, closes3 502', 'each once');
first(all_hang        => '504: hangs1 504, hangs2 504', 'each once');
first(off             => '502: refuses1 502', 'proxy_next_upstream off');
first(only_timeout    => '502: closes1 502', 'not for what is not named');
first(tries_2         => '502: refuses1 502, refuses2 502', 'proxy_next_upstream_tries');
first(tries_1         => '502: refuses1 502', 'of 1');
first(tries_9         => '502: refuses1 502, refuses2 502, refuses3 502', 'never more than there are servers');
first(time_is_up      => '504: hangs1 504, hangs2 504', 'proxy_next_upstream_timeout');
first(status          => '200: s503 503, s500 500, good 200', 'a status that is named');
first(status_not_said => '500: s503 503, s500 500', 'one that is not');
first(status_to_last  => '500: s503 503, s500 500', 'the last answer is passed on');
first(not_found       => '404: s404 404, t404 404', 'http_404');
first(not_found_there => '200: s404 404, good 200', 'http_404 and a server that has it');
first(backup          => '200: refuses1 502, refuses2 502, good 200', 'backups come last');
first(backups         => '200: refuses1 502, refuses2 502, good 200', 'one after the other');
first(tries_to_backup => '502: refuses1 502, refuses2 502', 'limits hold for backups too');
first(down            => '200: refuses1 502, good 200', 'not those that are down');
first(post            => '502: closes1 502', 'a POST that was sent is not sent again', 'POST', body => 'x=1');
first(post_refused    => '200: refuses1 502, good 200', 'one that was not sent is', 'POST', body => 'x=1');
first(post_safe       => '200: closes1 502, good 200', 'non_idempotent', 'POST', body => 'x=1');
first(post_status     => '503: s503 503', 'nor for a status', 'POST', body => 'x=1');
first(put             => '200: closes1 502, good 200', 'PUT may be repeated, its body from a file too', 'PUT', body => 'x' x 10_000);
is($backend{good}->stats->{last}{body}, 'x' x 10_000, 'the body is whole');
first(unbuffered      => '502: closes1 502', 'a body that is not kept can not be sent again', 'PUT', body => 'x' x 10_000);
first(unbuffered_none => '200: refuses1 502, good 200', 'unless none of it was sent', 'PUT', body => 'x' x 10_000);

subtest 'many tries: none twice' => sub {
    my $r = $node->get('/registry/many');
    my @tried = split /, /, $r->{headers}{'x-addr'};
    my %once = map { $_ => 1 } @tried;
    is($r->{status}, 502, 'nobody answers');
    is(@tried, 79, 'each of 79 servers was asked');
    is(keys %once, 79, 'once');
    is($r->{headers}{'x-addr'}, $node->get('/stock/many')->{headers}{'x-addr'}, 'in the order of stock');
};

subtest 'what happens between two tries' => sub {
    # hangs1 fails after 300 ms; meanwhile good is disabled.
    my $add = sub { api($node, $_[0] => { ns => 'later', host => $_[1]->host, port => $_[1]->port, @_[ 2 .. $#_ ] }) };
    $node->set_conf(
        http => $http . 'upstream later { registry main; registry_balance round_robin; server ' . $backend{hangs1}->address . ' max_fails=0; }',
        server => $node->{server} . 'location = /later { proxy_pass http://later; proxy_read_timeout ' . 300 * time_scale() . 'ms; }');
    ok($node->reload, 'a new upstream');
    $add->(add => $backend{good});
    my $begin = sub {
        my $client = $node->client;
        my $requests = $backend{hangs1}->stats->{requests};
        $client->send("GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
        # The turn may have been that of good.
        if (!wait_until(sub { $backend{hangs1}->stats->{requests} > $requests }, 0.1 * time_scale())) {
            $client->response;
            $client->send("GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
            wait_until(sub { $backend{hangs1}->stats->{requests} > $requests });
        }
        return $client;
    };
    my $client = $begin->();
    is($add->(toggle => $backend{good}, action => 'disable')->{status}, 200, 'the next one is disabled while the first is tried');
    is(seen($client->response), '502: hangs1 504, later 502', 'it is not asked');
    like(($node->grep_log(qr/no eligible server in namespace "later"/))[-1], qr/: 1 disabled, 1 tried while/,
        'the log says why, and that one was tried');

    $add->(toggle => $backend{good}, action => 'enable');
    $client = $begin->();
    $add->(add => $backend{also});
    $add->(remove => $backend{good});
    is(seen($client->response), '200: hangs1 504, also 200', 'one that has come is asked, one that has gone is not');
    is(connections($node, 'later'), 0, 'nothing stays in flight');
};

$node->log_is_clean;
done_testing;
