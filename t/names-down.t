# No answer about a name: its last addresses go on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/names.pl";

our ($dns, $port, %backend);
backends(2, 3);
my $node = node(settings => 'heartbeat_ttl 1h;');
$dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
change($node, add => 'app.test');
resolves_to($node, 'app.test', '2 3', 'two addresses');

for my $case (
    [ 'SERVFAIL',               sub { $dns->set('app.test' => { rcode => 'SERVFAIL' }) }, qr/Server failure/ ],
    [ 'silence',                sub { $dns->set('app.test' => { silent => 1 }) },         qr/Operation timed out/ ],
    [ 'nobody is there at all', sub { $dns->stop },                                       qr/Operation timed out/ ],
) {
    my ($what, $begin, $why) = @$case;
    subtest $what => sub {
        my $from = $node->log_size;
        $begin->();
        ok($node->wait_log(qr/\[warn\].*name app\.test:$port in namespace "app" can't be resolved \($why\): its last addresses, 2 of them, are kept/,
            20 * time_scale(), $from), 'a warning');
        is(answers($node), '2 3', 'both still take requests');
        sleep 3;
        is(scalar $node->grep_log(qr/can't be resolved/, $from), 1, 'it is said once');
        $dns->start unless $dns->{pid};
        $dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
        ok($node->wait_log(qr/\[notice\].*name app\.test:$port in namespace "app" is resolved again/, 40 * time_scale(), $from),
            'so is its end');
        is(answers($node), '2 3', 'and nothing was lost');
    };
}

subtest 'a name that is new while nobody answers comes when somebody does' => sub {
    $dns->set('late.test' => { silent => 1 });
    change($node, add => 'late.test');
    ok($node->wait_log(qr/name late\.test:$port .*can't be resolved .*: its last addresses, 0 of them/, 10 * time_scale()), 'there are none to keep');
    is(server($node, 'late.test')->{state}, 'unresolved', 'its state');
    $dns->set('late.test' => { a => ['127.0.0.4'] });
    resolves_to($node, 'late.test', '4', 'then it is resolved', timeout => 20 * time_scale());
};

subtest 'a worker that is told to end does not wait for an answer' => sub {
    $dns->set('slow.test' => { silent => 1 });
    my $slow = node(resolver => 'resolver ' . $dns->address . " ipv6=off;\n");
    change($slow, add => 'slow.test');
    ok(wait_until(sub { $dns->asked('slow.test') }), 'a question, which may take 30 s');
    my $began = time;
    ok($slow->reload, 'a reload');
    ok($slow->quit, 'and the end');
    cmp_ok(time - $began, '<', 8 * time_scale(), 'come at once');
    $slow->log_is_clean;
};

$node->log_is_clean;
done_testing;
