# scripts/manage_servers.sh against a real node: every command, many servers at once, the
# table, and exit codes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(spawn exit_status children);

my $SCRIPT = "$FindBin::Bin/../scripts/manage_servers.sh";
my $node = RegistryTest->nginx(
    workers => 2,
    http => 'registry main 512k { heartbeat_ttl 1h; }
        registry quick 256k { heartbeat_ttl 50ms; cleanup_interval 1h; }
        registry strict 256k { on_duplicate reject; }
        upstream fixed { registry main; server 127.0.0.9:9 weight=4 max_conns=0; }
        upstream backend { registry main; }',
    server => 'location /upstream/ { registry_api main; }
        location /quick/ { registry_api quick namespace=quick; }
        location /strict/ { registry_api strict namespace=strict; }
        location /html/ { default_type text/html; return 200 "<html>It works</html>"; }
        location / { proxy_pass http://backend; }',
);
my $backend = RegistryTest->backend(name => 'a');
my $here = '127.0.0.1:' . $backend->port;

# Runs a command of the script: { exit, out, err }. An environment (a hash) and the text
# of its standard input (a reference) may come last.
sub run {
    my (@arguments) = @_;
    my ($stdin, %env);
    $stdin = ${ pop @arguments } if ref $arguments[-1] eq 'SCALAR';
    %env = %{ pop @arguments } if ref $arguments[-1] eq 'HASH';
    my $dir = temp_dir();
    my @command = ($SCRIPT, @arguments);
    if (defined $stdin) {
        spew("$dir/stdin", $stdin);
        @command = ('bash', '-c', 'exec "$@" <"$0"', "$dir/stdin", @command);
    }
    my %clean = map { $_ => undef } qw(TOKEN TIMEOUT API_PATH);
    my $pid = spawn(\@command, stdout => "$dir/out", stderr => "$dir/err",
        env => { %clean, no_proxy => '127.0.0.1', BASE_URL => $node->url(''), NAMESPACE => 'backend', %env });
    wait_until(sub { !alive($pid) }, 20 * time_scale()) or return { exit => 'runs on', out => '', err => '' };
    return { exit => exit_status($pid) >> 8, out => slurp("$dir/out"), err => slurp("$dir/err") };
}
# A test: the command exits with 0 and says nothing else.
sub done {
    my (@arguments) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $ran = run(@arguments);
    is("$ran->{exit} $ran->{err}", '0 ', join ' ', 'done:', grep { !ref } @arguments);
    return $ran;
}
sub server { return servers($node, 'backend')->{ $_[0] } }
sub there { return join ' ', sort keys %{ servers($node, 'backend') } }

subtest 'add and remove, one and many' => sub {
    my $ran = done(add => $here);
    is($ran->{out}, "add $here: done\n", 'one line for each server');
    is(there(), $here, 'it is there');
    is($node->get('/')->{headers}{'x-backend'}, 'a', 'and takes requests');
    done(add => '127.0.0.2:80,weight=3', '127.0.0.3:80,max_conns=7', '127.0.0.4:80,max_conns=0,weight=0', '[::1]:80,weight=2', '[FD00::0:3]:8080');
    is(there(), join(' ', sort $here, '127.0.0.2:80', '127.0.0.3:80', '127.0.0.4:80', '[::1]:80', '[fd00::3]:8080'), 'many, of both families');
    is_deeply([ map { server($_)->{weight} } '127.0.0.2:80', '127.0.0.3:80', '127.0.0.4:80', '[::1]:80' ], [ 3, 1, 0, 2 ], 'weights');
    is_deeply([ map { server($_)->{max_conns} } '127.0.0.2:80', '127.0.0.3:80', '127.0.0.4:80' ], [ 1000, 7, 0 ], 'max_conns');
    done(add => '127.0.0.2:80,max_conns=9');
    is(server('127.0.0.2:80')->{weight} . ' ' . server('127.0.0.2:80')->{max_conns}, '3 9', 'of a known server what is given is changed');
    $ran = done(remove => '127.0.0.3:80', '[::1]:80');
    is($ran->{out}, "remove 127.0.0.3:80: done\nremove [::1]:80: done\n", 'remove');
    done(remove => '127.0.0.2:80', '127.0.0.4:80', '[fd00::3]:8080');
    is(there(), $here, 'down to one');
};

subtest 'enable, disable, weight, refresh' => sub {
    my @servers = ('127.0.0.2:80', '127.0.0.3:80');
    done(add => @servers);
    done(disable => @servers);
    is_deeply([ map { server($_)->{disabled_reason} } @servers ], [qw(manual manual)], 'disabled by hand');
    done(enable => @servers);
    is_deeply([ map { server($_)->{state} } @servers ], [qw(up up)], 'enabled');
    done(weight => '127.0.0.2:80,weight=5', '127.0.0.3:80,weight=0');
    is_deeply([ map { server($_)->{weight} } @servers ], [ 5, 0 ], 'weighted');
    my $heard = server($servers[0])->{last_heartbeat};
    done(refresh => @servers);
    ok(server($servers[0])->{last_heartbeat} > $heard, 'heard of');
    done(remove => @servers);
};

subtest 'drain tells how many requests are under way' => sub {
    my $slow = $node->client;
    $slow->send("GET /?delay=0.8 HTTP/1.1\r\nHost: x\r\n\r\n");
    ok(wait_until(sub { server($here)->{connections} == 1 }), 'a request');
    done(add => '127.0.0.2:80');
    my $ran = done(drain => $here, '127.0.0.2:80');
    is($ran->{out}, "drain $here: done (1 requests still on it)\ndrain 127.0.0.2:80: done (0 requests still on it)\n", 'by server');
    is(server($here)->{state}, 'draining', 'they are draining');
    is($slow->response->{status}, 200, 'the request is answered');
    done(enable => $here);
    is(server($here)->{state}, 'up', 'enable ends it');
    done(remove => '127.0.0.2:80');
};

subtest 'many servers at once, from standard input too' => sub {
    my @servers = map { "127.0.0.2:$_" } 1 .. 40;
    done(add => @servers);
    is(scalar(keys %{ servers($node, 'backend') }), 41, 'forty and one');
    my $list = "# to go\n\n" . join("\n", map { "  $_  # gone" } @servers[ 0 .. 29 ]) . "\n\t\n$servers[30]";
    my $ran = done(remove => '-', @servers[ 31 .. 39 ], \$list);
    is(scalar(my @lines = $ran->{out} =~ /: done$/mg), 40, 'a line each');
    is(there(), $here, 'all are gone');
};

subtest 'what fails is named, the rest is done, the exit code is 1' => sub {
    my $ran = run(remove => '127.0.0.2:80', $here, '127.0.0.3:80');
    is($ran->{exit}, 1, 'exit code');
    is($ran->{out}, "remove $here: done\n", 'what is done');
    like($ran->{err}, qr/^remove 127\.0\.0\.2:80: failed: HTTP 404, Server not found: 127\.0\.0\.2:80$/m, 'what is not, and why');
    like($ran->{err}, qr/^remove: 2 of 3 servers failed$/m, 'how many');
    is(there(), '', 'the one is gone');
    done(add => $here);

    for my $case (
        [ [ remove => '127.0.0.9:9', { NAMESPACE => 'fixed' } ], qr/HTTP 409, .*127\.0\.0\.9:9/, 'a static member cannot be removed' ],
        [ [ add => 'no-address:80' ], qr/HTTP 400, /, 'a name is no host' ],
        [ [ add => '127.0.0.2:0' ], qr/HTTP 400, .*port/, 'port 0' ],
        [ [ add => '127.0.0.2:99999' ], qr/HTTP 400, .*port/, 'port 99999' ],
        [ [ add => '127.0.0.2:80,weight=99999999999' ], qr/HTTP 400, .*weight/, 'a weight beyond all bounds' ],
        [ [ add => $here, { NAMESPACE => '' } ], qr/HTTP 400, .*ns/, 'no namespace, and the zone has several' ],
        [ [ add => $here, { NAMESPACE => 'shop', API_PATH => '/quick' } ], qr/HTTP 403, /, 'not the location\'s namespace' ],
        [ [ add => $here, { API_PATH => '/html' } ], qr/not the registry's/, 'a place where no registry answers' ],
        [ [ add => $here, { BASE_URL => 'http://127.0.0.1:1' } ], qr/failed: .*(?:connect|refused)/i, 'nobody there' ],
    ) {
        my ($arguments, $message, $what) = @$case;
        my $ran = run(@$arguments);
        is("$ran->{exit} $ran->{out}", '1 ', "exit code 1: $what");
        like($ran->{err}, $message, 'and the reason');
    }
    done(add => $here, { API_PATH => '/strict', NAMESPACE => '' });
    is(run(add => $here, { API_PATH => 'strict/', NAMESPACE => 'strict' })->{exit}, 1, 'a duplicate where that is refused');
};

subtest 'a command line that is wrong does nothing: exit code 2' => sub {
    my $before = there();
    for my $case (
        [ [], qr/what is to be done/ ],
        [ ['frobnicate'], qr/unknown command: frobnicate/ ],
        [ ['add'], qr/add needs at least one server/ ],
        [ [ 'remove', '-', \'' ], qr/remove needs at least one server/ ],
        [ [ add => '127.0.0.2:80', '127.0.0.3' ], qr/127\.0\.0\.3: a server is HOST:PORT/ ],
        [ [ add => '127.0.0.2:80', '::1:80' ], qr/::1:80: IPv6 goes in brackets/ ],
        [ [ add => '127.0.0.2:80', '127.0.0.3:http' ], qr/a server is HOST:PORT/ ],
        [ [ add => '127.0.0.2:80', '127.0.0.3:80,wieght=3' ], qr/add knows no wieght=3/ ],
        [ [ add => '127.0.0.2:80', '127.0.0.3:80,weight=-1' ], qr/weight must be a whole number/ ],
        [ [ remove => $here, '127.0.0.3:80,weight=1' ], qr/remove knows no weight=1/ ],
        [ [ weight => "$here,weight=2", '127.0.0.3:80' ], qr/say the new weight/ ],
        [ [ weight => "$here,weight=2,max_conns=3" ], qr/weight knows no max_conns=3/ ],
        [ [ add => '127.0.0.2:80', { BASE_URL => 'ftp://x' } ], qr/BASE_URL must begin with http/ ],
        [ [ add => '127.0.0.2:80', { TIMEOUT => 'soon' } ], qr/TIMEOUT must be seconds/ ],
        [ [ add => '127.0.0.2:80', { TOKEN => "a\nb" } ], qr/TOKEN must be one line/ ],
        [ [ status => '--xml' ], qr/./ ],
    ) {
        my ($arguments, $message) = @$case;
        my $ran = run(@$arguments);
        my $what = join(' ', grep { !ref } @$arguments) || 'nothing';
        is("$ran->{exit} $ran->{out}", '2 ', "exit code 2: $what");
        like($ran->{err}, $message, 'and the reason');
    }
    is(there(), $before, 'nothing was done');
    is(server($here)->{weight}, 1, 'nor changed');
    my $ran = run('--help');
    like("$ran->{exit} $ran->{out}", qr/^0 Usage: .*add.*remove.*enable.*disable.*drain.*weight.*status/s, '--help');
};

subtest 'status as a table' => sub {
    done(add => '127.0.0.2:80,weight=12,max_conns=0', '[::1]:8080');
    done(disable => '127.0.0.2:80');
    done(drain => '[::1]:8080');
    $node->get('/') for 1 .. 3;
    my $ran = done('status');
    my @lines = split /\n/, $ran->{out};
    is(scalar(@lines), 4, 'a line of titles and one for each server');
    is(join(' ', split ' ', $lines[0]), 'SERVER NAMESPACE STATE CONNS WEIGHT MAX_CONNS HEARTBEAT REQUESTS FAILS REASON', 'the titles');
    my %row = map { my @cells = split; ($cells[0] => \@cells) } @lines[ 1 .. 3 ];
    my $requests = server($here)->{requests};
    is(join(' ', @{ $row{$here} }[ 1 .. 5, 7 .. 9 ]), "backend up 0 1 1000 $requests 0 -", 'a server that is up');
    is(join(' ', @{ $row{'127.0.0.2:80'} }[ 1 .. 5, 9 ]), 'backend down 0 12 - manual', 'one that is disabled, without max_conns');
    is($row{'[::1]:8080'}[2], 'draining', 'one that is draining');
    is(scalar(grep { $row{$_}[6] !~ /^\d+(?:\.\d)?s$/ } keys %row), 0, 'silent for so many seconds');
    my ($at) = $lines[0] =~ /^(.*?)NAMESPACE/;
    is(scalar(grep { substr($_, length $at) !~ /^backend / } @lines[ 1 .. 3 ]), 0, 'columns are in line');

    $ran = done('status', { NAMESPACE => 'fixed' });
    like($ran->{out}, qr/^127\.0\.0\.9:9\s+fixed\s+up\s+0\s+4\s+-\s/m, 'a static member');
    done(add => $here, { API_PATH => '/quick', NAMESPACE => '' });
    sleep 0.1;
    like(done('status', { API_PATH => '/quick', NAMESPACE => '' })->{out}, qr/^\Q$here\E\s+quick\s+expired\s/m, 'one that has expired');
    is(scalar(my @empty = split /\n/, done('status', { API_PATH => '/strict', NAMESPACE => '' })->{out}), 2, 'one server');
    done(remove => $here, { API_PATH => '/strict', NAMESPACE => '' });
    is(scalar(@empty = split /\n/, done('status', { API_PATH => '/strict', NAMESPACE => '' })->{out}), 1, 'no server: the titles alone');

    $ran = done('status', '--json');
    my $json = JSON::PP->new->utf8->decode($ran->{out});
    is("$json->{code} $json->{total}", '200 3', '--json is the registry\'s own answer');

    for my $case ([ { NAMESPACE => 'nosuch' }, qr/nosuch/ ], [ { API_PATH => '/html' }, qr/./ ], [ { BASE_URL => 'http://127.0.0.1:1' }, qr/no status from/ ]) {
        my ($env, $message) = @$case;
        $ran = run('status', $env);
        is("$ran->{exit} $ran->{out}", '1 ', join ' ', 'exit code 1:', %$env);
        like($ran->{err}, $message, 'and the reason');
    }
};

subtest 'the token is sent, and shown to nobody' => sub {
    my $token = q{to"ken \\ 'with' $pecial%20 signs};
    my $front = RegistryTest->backend(name => 'front', type => 'application/json', body => '{"code":200,"message":"Success","data":[]}');
    for my $arguments ([ add => $here ], ['status']) {
        $front->set(delay => 0.4);
        my $pid = spawn([ $SCRIPT, @$arguments ], stderr => $node->dir . '/token.err',
            env => { no_proxy => '127.0.0.1', BASE_URL => $front->url(''), TOKEN => $token, NAMESPACE => 'backend' });
        ok(wait_until(sub { $front->stats->{active} }), "$arguments->[0]: a request is under way");
        my @below = children($pid);
        push @below, map { children($_) } @below;
        ok(scalar(@below), 'by processes that the script has started');
        my @seen = grep { index(slurp("/proc/$_/cmdline"), 'ken ') >= 0 } $pid, @below;
        push @seen, grep { slurp("/proc/$_/cmdline") =~ /^curl/ && index(slurp("/proc/$_/environ"), $token) >= 0 } @below;
        is("@seen", '', 'no arguments have it, nor the environment of curl');
        wait_until(sub { !alive($pid) }, 10 * time_scale());
        is(exit_status($pid), 0, 'it ends well');
        is($front->stats->{last}{headers}{authorization}, "Bearer $token", 'the registry gets it');
    }
};

$node->log_is_clean;
done_testing;
