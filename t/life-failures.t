# max_fails and fail_timeout of registered servers: said at registration, as on server lines.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/life.pl";

our $node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 256k { heartbeat_ttl 1h; state_file main.json; } upstream main { registry main; }',
    server => 'location /main/ { registry_api main; } location /to/main { proxy_pass http://main/; proxy_next_upstream error timeout http_503; }',
);
my ($good, $bad) = map { RegistryTest->backend(name => $_) } qw(good bad);
my $REST = 1 * time_scale();

# Sends requests until the bad server has had so many; they are answered by the good one.
sub fails {
    my ($count) = @_;
    my $before = server('main', $bad)->{fails};
    for (1 .. 20 * $count) {
        $node->get('/to/main');
        return server('main', $bad)->{fails} - $before if server('main', $bad)->{fails} >= $before + $count;
    }
    return server('main', $bad)->{fails} - $before;
}

sub state { return server('main', $bad)->{state} }

call('main', add => $good, max_fails => 0);
subtest 'as many failures as it said take a server out' => sub {
    call('main', add => $bad, max_fails => 3, fail_timeout => 1000 * $REST . 'ms');
    $bad->set(status => 503);
    is(fails(2), 2, 'two failures');
    is(state(), 'up', 'are none too many');
    is(fails(1), 1, 'the third');
    is(state(), 'unhealthy', 'is');
    is(fails(1), 0, 'it gets no more requests');
    $bad->clear;
    ok(wait_until(sub { answers('main', 4) eq 'bad good' }), 'for as long as it said');
    is(state(), 'up', 'and is back');
};

subtest 'a heartbeat that says otherwise' => sub {
    call('main', add => $bad, max_fails => 1, fail_timeout => '1d');
    $bad->set(status => 503);
    is(fails(1), 1, 'one failure');
    is(state(), 'unhealthy', 'is enough now');
    call('main', add => $bad);
    call('main', refresh => $bad);
    is(state(), 'unhealthy', 'a heartbeat that says nothing changes nothing');
    call('main', add => $bad, max_fails => 0);
    is(state(), 'up', '0: failures do not count');
    is(fails(5), 5, 'however many');
    is(state(), 'up', 'there are');
    $bad->clear;
};

subtest 'a restart' => sub {
    call('main', add => $bad, max_fails => 2, fail_timeout => '1h');
    ok($node->quit, 'nginx ends');
    my $file = slurp($node->dir . '/main.json');
    like($file, qr/"max_fails":2,"fail_timeout_ms":3600000/, 'the state file has them');
    $node->start;
    $bad->set(status => 503);
    is(fails(1), 1, 'one failure');
    is(state(), 'up', 'is not too many');
    is(fails(1), 1, 'the second');
    is(state(), 'unhealthy', 'is');
};

subtest 'what is refused' => sub {
    is(call('main', add => $bad, max_fails => 'many')->{json}{message}, 'Parameter "max_fails" must be an integer from 0 to 2147483647', 'max_fails');
    is(call('main', add => $bad, fail_timeout => '2d')->{json}{message},
        'Parameter "fail_timeout" must be a time of at most 1d, written as 30s, 500ms or 1m 30s', 'fail_timeout');
};

$node->log_is_clean;
done_testing;
