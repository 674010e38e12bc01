# A name is registered like any server, and each of its addresses takes requests.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/names.pl";

our ($dns, $port, %backend);
backends(2, 3, 4);
$dns->set('app.test' => { a => [ '127.0.0.3', '127.0.0.2' ] });
my $node = node(settings => 'heartbeat_ttl 1h;');

subtest 'registered it is resolved at once, and all its addresses take requests' => sub {
    my $began = time;
    my $data = change($node, add => 'App.Test.', weight => 3);
    is($data->{addr}, "app.test:$port", 'in lower case, without the full stop');
    is($data->{host}, 'app.test', 'its host');
    resolves_to($node, 'app.test', '2 3', 'both addresses are there');
    cmp_ok(time - $began, '<', 1 * time_scale(), 'within a second');
    is(answers($node), '2 3', 'both answer');
    ok($node->wait_log(qr/server 127\.0\.0\.2:$port added in namespace "app", an address of app\.test:$port/), 'the log says so');
    my ($name, $address) = map { server($node, $_) } 'app.test', '127.0.0.2';
    is("$name->{state} $name->{requests}", 'up 0', 'the name itself has no requests');
    is($name->{name}, undef, 'and no name');
    is("$address->{name} $address->{weight} $address->{state}", "app.test:$port 3 up", 'an address names its name');
    is($address->{last_heartbeat}, $name->{last_heartbeat}, 'and has its heartbeat');
    is_deeply($node->get('/upstream/health?ns=app')->{json}{data},
        { total_servers => 2, enabled_servers => 2, active_servers => 2, expired_servers => 0 }, 'health counts addresses');
};

subtest 'what is said of the name is done to its addresses' => sub {
    is(change($node, weight => 'app.test', weight => 7)->{weight}, 7, 'a weight');
    is(server($node, "127.0.0.$_")->{weight}, 7, "at 127.0.0.$_") for 2, 3;
    my $before = server($node, '127.0.0.2')->{last_heartbeat};
    sleep 0.05;
    change($node, refresh => 'app.test');
    cmp_ok(server($node, '127.0.0.2')->{last_heartbeat}, '>', $before, 'a heartbeat');
    change($node, toggle => 'app.test', action => 'disable');
    is(answers($node, 2), '502', 'disabled, none of them takes requests');
    like($node->wait_log(qr/no eligible server/), qr/2 disabled/, 'as the log says');
    change($node, toggle => 'app.test', action => 'enable');
    is(answers($node), '2 3', 'enabled, all do');
    change($node, toggle => '127.0.0.2', action => 'disable');
    is(answers($node), '3', 'one of them alone can be disabled');
    change($node, add => 'app.test');
    is(answers($node), '3', 'and stays so');
    change($node, toggle => 'app.test', action => 'enable');
    is(answers($node), '2 3', 'until the name is enabled');
};

subtest 'drain waits for all of its addresses' => sub {
    my @busy = map { my $c = $node->client; $c->send("GET /?delay=1 HTTP/1.1\r\nHost: x\r\n\r\n"); $c } 1 .. 4;
    ok(wait_until(sub { connections($node, 'app') == 4 }), 'four requests');
    my $began = time;
    my $data = change($node, drain => 'app.test', wait => '20s');
    is($data->{connections}, 0, 'it is done');
    cmp_ok(time - $began, '>', 0.3, 'when they are');
    is($_->response->{status}, 200, 'which were not disturbed') for @busy;
    is(answers($node, 2), '502', 'new ones are refused');
    change($node, toggle => 'app.test', action => 'enable');
    is(answers($node), '2 3', 'until it is enabled');
};

subtest 'an address goes with its name' => sub {
    for my $endpoint (qw(remove refresh)) {
        my $response = api($node, $endpoint, { ns => 'app', host => '127.0.0.2', port => $port });
        is($response->{status}, 409, "$endpoint of an address is refused");
        is($response->{json}{message},
            "Server 127.0.0.2:$port is an address of the name app.test:$port: remove or refresh that instead", 'and says why');
    }
    change($node, remove => 'app.test');
    is_deeply(status($node, 'app')->{data}, [], 'removed with it');
    is(answers($node, 2), '502', 'none answers');
    is(api($node, refresh => { ns => 'app', host => 'app.test', port => $port })->{status}, 404, 'it is not known any more');
};

subtest 'who is there by itself stays so' => sub {
    change($node, add => '127.0.0.3', weight => 9);
    change($node, add => 'app.test');
    resolves_to($node, 'app.test', '2', 'the name has only the other');
    is(server($node, '127.0.0.3')->{weight}, 9, 'it is as it was');
    change($node, remove => 'app.test');
    is(answers($node), '3', 'and stays without the name');
    change($node, remove => '127.0.0.3');
};

subtest 'a CNAME is followed, and IPv6 addresses are taken unless the resolver leaves them out' => sub {
    $dns->set('alias.test' => { cname => 'app.test' }, 'six.test' => { a => ['127.0.0.2'], aaaa => ['::1'] });
    change($node, add => $_) for qw(alias.test six.test);
    resolves_to($node, 'alias.test', '2 3', 'the addresses of the other name');
    ok(!servers($node, 'app')->{"[::1]:$port"}, 'ipv6=off');
    change($node, remove => $_) for qw(alias.test six.test);
    my $both = node(resolver => 'resolver ' . $dns->address . ";\n");
    change($both, add => 'six.test');
    ok(wait_until(sub { 3 == keys %{ servers($both, 'app') } }), 'both kinds');
    is(servers($both, 'app')->{"[::1]:$port"}{name}, "six.test:$port", 'of one name');
    $both->log_is_clean;
};

$node->log_is_clean;
done_testing;
