# The nodes of the plain Perl tests, with stock nginx: each method does what it says.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $CONF = 'location / { return 200 "one $pid\n"; } location = /slow { limit_rate 100; limit_rate_after 1; root html; }';

# Start, requests, configuration
my $node = RegistryTest->nginx(
    workers => 2, env => { FROM_TEST => 'set' }, server => $CONF,
    http => 'server { listen 127.0.0.1:%%PORT_second%%; return 200 "second\n"; }',
);
my @workers = $node->workers;
is(@workers, 2, 'as many workers as asked for');
like($node->get('/')->{body}, qr/^one (?:$workers[0]|$workers[1])$/, 'one of them answers');
is(http('GET', $node->url('/', 'second'))->{body}, "second\n", 'a second port');

my ($exit, $output) = $node->test_conf;
is($exit, 0, 'nginx -t of a good configuration');
like($output, qr/test is successful/, 'and what it says');
($exit, $output) = $node->test_conf('nonsense;');
is($exit, 1, 'nginx -t of a bad one');
like($output, qr/unknown directive "nonsense"/, 'and what it says');

# Reload
$node->set_conf(server => 'location / { return 200 "two $pid\n"; }');
ok($node->reload, 'reload');
my %old = map { $_ => 1 } @workers;
is(scalar(grep { $old{$_} } $node->workers), 0, 'all workers are new');
is(scalar(grep { alive($_) } @workers), 0, 'the old ones are gone');
like($node->get('/')->{body}, qr/^two/, 'the new configuration answers');

$node->set_conf(server => 'nonsense;');
@workers = $node->workers;
ok(!$node->reload, 'a bad configuration is refused');
is_deeply([ $node->workers ], \@workers, 'and the workers stay');
like($node->wait_log(qr/\[emerg\]/), qr/unknown directive "nonsense"/, 'wait_log gives the line');

# A request that keeps an old worker busy
spew($node->dir . '/html/slow', 'x' x 1000);
$node->set_conf(server => $CONF);
ok($node->reload, 'and a good one again');
my $slow = $node->client(timeout => 5);
$slow->send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
ok($slow->read_some, 'a slow answer has begun');
ok($node->reload(wait => 'new'), 'a reload that does not wait for it');
ok(wait_until(sub { $node->old_workers == 1 }), 'its worker alone is shutting down');
is(scalar($node->workers), 2, 'besides the new ones');
ok(!$node->reload(timeout => 0.3), 'one that waits for it runs out of time');
$slow->close;
ok(wait_until(sub { !$node->old_workers }), 'with the client the old worker goes');

# A killed worker
@workers = $node->workers;
my $replacement = $node->kill_worker($workers[0]);
ok($replacement && !grep({ $_ == $replacement } @workers), 'a killed worker is replaced');
ok(!alive($workers[0]), 'and gone');
is($node->get('/')->{status}, 200, 'and requests are answered');

# Logs
is(scalar($node->grep_log(qr/exited on signal 9/)), 1, 'grep_log finds the line about it');
ok(!$node->wait_log(qr/never said/, 0.05), 'wait_log gives up');
$node->log_is_clean(allow => [ [ qr/exited on signal 9/, 1 ], [ qr/unknown directive "nonsense"/, 1 ] ]);

# Ends
my $pid = $node->pid;
ok($node->quit, 'quit');
ok(!alive($pid) && !$node->running, 'and it is gone');
is($node->get('/')->{status}, 0, 'nobody answers');
ok($node->start, 'it starts again, on the same port');
is($node->get('/')->{status}, 200, 'and answers');
my @all = ($node->pid, $node->workers);
ok($node->kill_all, 'kill_all');
is(scalar(grep { alive($_) } @all), 0, 'nothing is left of it');
ok($node->start && $node->stop, 'it starts and stops after that');
my $broken = RegistryTest->nginx(start => 0, http => 'nonsense;');
ok(!$broken->start(fails => 1), 'a start that is to fail may');
like($broken->start_error, qr/unknown directive "nonsense"/, 'and nginx says why');

# Without a master
my $single = RegistryTest->nginx(master => 0, server => 'location / { return 200 "$pid\n"; }');
is($single->get('/')->{body}, $single->pid . "\n", 'a single process answers');
is(scalar($single->workers), 0, 'having no workers');
ok($single->quit, 'and quits');
$single->log_is_clean;

# Binary upgrade
my $daemon = RegistryTest->nginx(daemon => 1, server => 'location / { return 200 "$pid\n"; }');
my $first = $daemon->pid;
my $second = $daemon->upgrade;
ok($second && $second != $first && alive($first), 'an upgrade brings a second master');
ok($daemon->winch_old, 'the old one lets its workers go');
@workers = $daemon->workers;
is(@workers, 2, 'the new one has its own');
like($daemon->get('/')->{body}, qr/^(?:$workers[0]|$workers[1])$/, 'which answer');
ok($daemon->finish_upgrade && !alive($first), 'the old one goes');
for my $winch (0, 1) {
    my $third = $daemon->upgrade;
    ok($daemon->winch_old, 'the old workers go') if $winch;
    is($daemon->rollback, $second, 'another upgrade is taken back');
    ok(!alive($third), 'the new master goes');
    is(scalar($daemon->workers), 2, 'the old one has its workers');
    is($daemon->get('/')->{status}, 200, 'and requests are answered');
}
$daemon->log_is_clean;

done_testing;
