# scripts/init_redis.sh against a real Redis: what it writes, what it forgets and when, what it
# refuses, and that no password gets out. No nginx takes part.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(spawn exit_status find_program);

my $SCRIPT = "$FindBin::Bin/../scripts/init_redis.sh";
my $redis = RegistryTest->redis(socket => 1, tls => 1, user => [ 'reader', 'secret-of-reader', '~upstream:*', qw(+@read +time +eval) ]);
my @LIST = ('10.0.0.1:80', '10.0.0.2:80 weight=2 max_conns=50', '[fd00::3]:80 disabled');

# A file of servers.
sub list { return spew(temp_dir() . '/servers', join '', map { "$_\n" } @_) }

# Runs the script: { exit, out, err }. An environment (a hash) may come last.
sub run {
    my (@arguments) = @_;
    my %env = ref $arguments[-1] ? %{ pop @arguments } : ();
    my $dir = temp_dir();
    my $pid = spawn([ $SCRIPT, @arguments ], stdout => "$dir/out", stderr => "$dir/err",
        env => { TIMEOUT => undef, REDISCLI_AUTH => undef, REDIS_URL => $redis->url, %env });
    wait_until(sub { !alive($pid) }, 20 * time_scale()) or return { exit => 'runs on', out => '', err => '' };
    return { exit => exit_status($pid) >> 8, out => slurp("$dir/out"), err => slurp("$dir/err") };
}
# A test: the script exits with 0 and complains about nothing.
sub done {
    my (@arguments) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $ran = run(@arguments);
    is("$ran->{exit} $ran->{err}", '0 ', join ' ', 'done:', grep { !ref } @arguments);
    return $ran;
}
# A test: it exits so, says this on stderr, and Redis is as it was.
sub refused {
    my ($exit, $message, $what, @arguments) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $before = everything();
    my $ran = run(@arguments);
    is($ran->{exit}, $exit, "exit code $exit: $what") or diag($ran->{err});
    like($ran->{err}, $message, 'and the reason');
    is(everything(), $before, 'nothing is written');
    return $ran;
}
# All that is in Redis, as text.
sub everything {
    return join "\n", map { "$_ " . unpack 'H*', $redis->cli(DUMP => $_) || '' } sort @{ $redis->cli(KEYS => '*') };
}
sub keys_are { return join ' ', sort @{ $redis->cli(KEYS => '*') } }
sub there { my ($namespace) = @_; return join ' ', sort keys %{ $redis->registry($namespace) } }

subtest 'an empty Redis is filled, with what the reference\'s script writes' => sub {
    my $before = $redis->now;
    my $ran = done(list(@LIST));
    is(keys_are(), 'upstream:heartbeat upstream:servers:meta upstream:servers:zset upstream:sync:spaces', 'the three keys, and the set of namespaces');
    is("@{ $redis->cli(SMEMBERS => 'upstream:sync:spaces') }", 'default', 'which has this one');
    my $servers = $redis->registry;
    is_deeply([ sort keys %$servers ], [ '10.0.0.1:80', '10.0.0.2:80', '[fd00::3]:80' ], 'the servers');
    is_deeply([ map { $_->{score} } values %$servers ], [ 0, 0, 0 ], 'with no connections');
    my $one = $servers->{'10.0.0.1:80'};
    is_deeply([ sort keys %{ $one->{meta} } ], [ sort qw(host port weight max_conns enabled created_at last_heartbeat) ], 'the fields');
    is(join(' ', @{ $one->{meta} }{qw(host port weight max_conns enabled)}), '10.0.0.1 80 1 1000 1', 'and values when nothing is said');
    ok($one->{heartbeat} >= $before - 0.001 && $one->{heartbeat} <= $redis->now, 'times are of Redis\' clock');
    is_deeply([ @{ $one->{meta} }{qw(created_at last_heartbeat)} ], [ (0 + $one->{heartbeat}) x 2 ], 'all the same');
    is_deeply([ @{ $servers->{'10.0.0.2:80'}{meta} }{qw(weight max_conns)} ], [ 2, 50 ], 'what the line says');
    my $off = $servers->{'[fd00::3]:80'}{meta};
    ok(!$off->{enabled}, 'one that is disabled');
    is("$off->{host} $off->{port} $off->{disabled_reason} $off->{disabled_at}", "fd00::3 80 manual $off->{created_at}", 'by hand, from now on');

    my @lines = split /\n/, $ran->{out};
    is($lines[0], 'Wrote 3 servers into "default" of the registry "upstream" in Redis at redis://127.0.0.1:' . $redis->port . '/0:', 'it says what it did');
    is_deeply([ map { my @cells = split; join ' ', @cells[ 0 .. 5 ] } @lines[ 2 .. 4 ] ], [
        "\xe2\x9c\x93 default 10.0.0.1:80 0 1 1000", "\xe2\x9c\x93 default 10.0.0.2:80 0 2 50", "\xe2\x9c\x97 default [fd00::3]:80 0 1 1000",
    ], 'and shows the table of servers');
    like($lines[$_], qr/  \d+\.\ds$/, 'with the age of the heartbeat') for 2 .. 4;
    my ($at) = $lines[1] =~ /^(.*?)NAMESPACE/;
    is(scalar(grep { substr($_, 2 + length $at) !~ /^default / } @lines[ 2 .. 4 ]), 0, 'columns are in line');
};

subtest '--show changes nothing and shows what is there' => sub {
    $redis->cli(HSET => 'upstream:servers:meta', '10.0.0.8:80', '{"enabled":true,"weight":3,"max_conns":0}', '10.0.0.9:80', '{');
    $redis->cli(SADD => 'upstream:sync:spaces', 'shop');
    $redis->cli(ZADD => 'upstream:shop:servers:zset', 4, '10.0.1.1:80');
    my $before = everything();
    my @lines = split /\n/, done('--show')->{out};
    like($lines[0], qr/^   NAMESPACE +SERVER +CONNS +WEIGHT +MAX_CONNS +HEARTBEAT$/, 'titles');
    is(join(' ', split ' ', $lines[4]), "\xe2\x9c\x93 default 10.0.0.8:80 - 3 - -", 'one without connections, limit and heartbeat');
    is(join(' ', split ' ', $lines[5]), '? default 10.0.0.9:80 - - - -', 'one with broken JSON');
    is(join(' ', split ' ', $lines[6]), '? shop 10.0.1.1:80 4 - - -', 'one of another namespace, of which only connections are known');
    is(scalar(@lines), 7, 'and no more');
    is(scalar(@lines = split /\n/, done('--show', '--namespace', 'shop')->{out}), 2, 'one namespace');
    is(done('--show', '--prefix=other')->{out}, 'No servers under "other" in Redis at redis://127.0.0.1:' . $redis->port . "/0\n", 'a prefix with nothing');
    is(everything(), $before, 'nothing was changed');
    $redis->cli(HDEL => 'upstream:servers:meta', '10.0.0.8:80', '10.0.0.9:80');
    $redis->cli(DEL => 'upstream:shop:servers:zset');
};

subtest 'what is there is not overwritten without a word' => sub {
    $redis->cli(SADD => 'upstream:sync:spaces', 'shop');
    $redis->register('shop', '10.0.1.1:80');
    my $ran = refused(1, qr/^init_redis\.sh: error: nothing was changed: stdin is no terminal/m, 'servers, and nobody to ask', list('10.0.0.7:80'));
    like($ran->{err}, qr{^The registry "upstream" in Redis at redis://127\.0\.0\.1:\d+/0 has 4 servers:\n +3 in namespace "default"\n +1 in namespace "shop"\n},
        'how many servers in which namespaces');
    like($ran->{err}, qr/--force forgets .*--keep adds/, 'and what to do');
    refused(1, qr/nothing was changed/, 'also when the servers are in other namespaces only', '--namespace=new', list('10.0.0.7:80'));
    done('--prefix', 'other', list('10.0.0.7:80'));
    is(there(), '10.0.0.1:80 10.0.0.2:80 [fd00::3]:80', 'another prefix is another registry');
    is(join(' ', keys %{ $redis->registry('default', prefix => 'other') }), '10.0.0.7:80', 'which is filled');
    $redis->cli(DEL => map { "other:$_" } qw(servers:zset servers:meta heartbeat sync:spaces));
};

# At a terminal: script(1) makes one. Returns { exit, out }.
sub at_terminal {
    my ($answer, @arguments) = @_;
    my $dir = temp_dir();
    POSIX::mkfifo("$dir/in", 0600) or die "mkfifo: $!\n";
    open my $in, '+<', "$dir/in" or die "open: $!\n";
    my $pid = spawn([ 'bash', '-c', 'exec script -qefc "$1" /dev/null <"$0"', "$dir/in", join ' ', $SCRIPT, @arguments ],
        stdout => "$dir/out", stderr => "$dir/out", env => { REDIS_URL => $redis->url });
    wait_until(sub { slurp("$dir/out") =~ m{\[y/N\] $} || !alive($pid) }, 10 * time_scale());
    syswrite $in, "$answer\n";
    wait_until(sub { !alive($pid) }, 20 * time_scale());
    return { exit => exit_status($pid) >> 8, out => slurp("$dir/out") };
}

subtest 'at a terminal it asks' => sub {
    my $before = everything();
    my $list = list('10.0.0.7:80');
    for my $answer ('n', '', 'nonsense') {
        my $ran = at_terminal($answer, $list);
        is("$ran->{exit} " . (everything() eq $before), '1 1', "\"$answer\": nothing is changed");
        like($ran->{out}, qr/Forget all of them, in every namespace and on all nodes, and write 1 server into "default"\? \[y\/N\] .*nothing was changed/s, 'the question');
    }
    my $ran = at_terminal('y', $list);
    is("$ran->{exit} " . there() . there('shop'), '0 10.0.0.7:80', '"y": all namespaces are forgotten, the file is there');
    like($ran->{out}, qr/^Forgot 4 servers\.\r?\nWrote 1 server into "default"/m, 'and it says so');
};

subtest 'a planned wipe' => sub {
    # What nodes keep there, one name of each form.
    my @private = map { "upstream:sync:$_" } qw(run version floor records index graves beat-seq beat-index total-seq totals
        total-index nodes lease meta:default beat:default meta:shop counts:node-1 counts:node.2);
    $redis->cli(SET => $_, 1) for @private;
    $redis->cli(SET => 'upstream:sync:epoch', '00000000000000bb 00000000000000aa');
    $redis->cli(SET => 'upstream:synchronous', 'not ours');
    $redis->cli(SADD => 'upstream:sync:spaces', 'shop');
    $redis->register($_, '10.0.1.1:80') for qw(shop blue);
    my $before = $redis->now;
    my $ran = done('--force', '--namespace', 'blue', list('10.0.2.1:80'));
    is(keys_are(), 'upstream:blue:heartbeat upstream:blue:servers:meta upstream:blue:servers:zset '
        . 'upstream:sync:epoch upstream:sync:spaces upstream:sync:wiped upstream:synchronous', 'of the prefix nothing else is left');
    is(there('blue'), '10.0.2.1:80', 'the namespace named is emptied, too, although no node knew it');
    like($redis->cli(GET => 'upstream:sync:epoch'), qr/^[0-9a-f]{16} 00000000000000bb 00000000000000aa$/, 'the new epoch names those that it replaces');
    my $wiped = $redis->cli(GET => 'upstream:sync:wiped');
    ok($wiped =~ /^\d{13}$/ && $wiped >= int($before * 1000) && $wiped <= $redis->now * 1000, 'and when');
    is("@{ $redis->cli(SMEMBERS => 'upstream:sync:spaces') }", 'blue', 'the namespaces');

    my %seen = map { $_ => 1 } split ' ', $redis->cli(GET => 'upstream:sync:epoch');
    done('--force', list('10.0.2.1:80')) for 1 .. 16;
    my @words = split ' ', $redis->cli(GET => 'upstream:sync:epoch');
    is(scalar(@words), 16, 'it names fifteen at most');
    is(scalar(grep { $seen{$_}++ } @words), 0, 'the latest; each is new');
    $redis->cli(DEL => 'upstream:synchronous');

    $redis->cli(DEL => 'upstream:sync:epoch', 'upstream:sync:wiped');
    $ran = run('--force', list('10.0.2.2:80'));
    is("$ran->{exit} " . there(), '0 10.0.2.2:80', 'without an epoch');
    like($ran->{err}, qr/^warning: no node had used this Redis since it was empty/, 'there is none to name, which it says');
    is($redis->cli(EXISTS => 'upstream:sync:epoch'), 0, 'and none is made');
};

subtest '--keep adds to what is there' => sub {
    $redis->cli(SET => 'upstream:sync:epoch', '00000000000000cc');
    $redis->cli(ZADD => 'upstream:servers:zset', 5, '10.0.2.2:80');
    my $old = $redis->registry->{'10.0.2.2:80'};
    done('--keep', list('10.0.2.2:80 weight=9 disabled', '10.0.2.3:80'));
    my $new = $redis->registry->{'10.0.2.2:80'};
    is(there(), '10.0.2.2:80 10.0.2.3:80', 'the new one and the old');
    is("$new->{score} $new->{meta}{weight} $new->{meta}{disabled_reason}", '5 9 manual', 'of which the file\'s values hold, and connections stay');
    is($new->{meta}{created_at}, $old->{meta}{created_at}, 'created when it was');
    ok($new->{heartbeat} > $old->{heartbeat} && $new->{meta}{updated_at} == $new->{heartbeat}, 'updated and heard of now');
    is($redis->cli(GET => 'upstream:sync:epoch'), '00000000000000cc', 'the epoch stays');
    $redis->cli(RENAME => 'upstream:heartbeat', 'aside');
    $redis->cli(RPUSH => 'upstream:heartbeat', 'no hash');
    refused(1, qr/the key upstream:heartbeat is a list, not a hash/, 'a key of another type', '--keep', list('10.0.2.4:80'));
    done('--force', list('10.0.2.5:80'));
    is($redis->cli(TYPE => 'upstream:heartbeat'), 'hash', 'which --force replaces');
    $redis->cli(DEL => 'aside');
};

# A redis-cli that does something of its own before it writes, and notes what it is given.
sub meddler {
    my ($command) = @_;
    my $dir = temp_dir();
    my $real = find_program('redis-cli');
    spew("$dir/redis-cli", "#!/bin/bash\nfor a; do [[ \$a != -x ]] || { $command; } </dev/null >/dev/null; done\n"
        . "printf '%s\\n' \"\$@\" >>$dir/arguments\nexec $real \"\$@\"\n");
    chmod 0755, "$dir/redis-cli";
    return $dir;
}

subtest 'what changes meanwhile is not wiped' => sub {
    my $cli = find_program('redis-cli') . ' -p ' . $redis->port;
    my $path = sub { return { PATH => meddler($_[0]) . ":$ENV{PATH}" } };
    my $ran = run('--force', list('10.0.3.1:80'), $path->("$cli SET upstream:sync:epoch 00000000000000dd"));
    is("$ran->{exit} " . there(), '1 10.0.2.5:80', 'another epoch: exit code 1, and what was there stays');
    like($ran->{err}, qr/was filled or wiped by somebody else meanwhile; nothing was changed, try again/, 'and the reason');
    $redis->cli('FLUSHALL');
    $ran = run(list('10.0.3.1:80'), $path->("$cli HSET upstream:servers:meta 10.0.3.2:80 {}"));
    is("$ran->{exit} " . there(), '1 10.0.3.2:80', 'servers where there were none');
    like($ran->{err}, qr/meanwhile/, 'and the reason');
    $redis->cli('FLUSHALL');
};

subtest 'files: what is understood' => sub {
    my $many = join "\n", map { '10.1.' . ($_ >> 8) . '.' . ($_ & 255) . ':80' } 1 .. 3000;
    my %form = (
        '010.000.00.1:0080' => '10.0.0.1:80', '[::ffff:10.0.0.4]:1' => '10.0.0.4:1', 'Shop_1.Example.:80' => 'shop_1.example:80', 'localhost:1' => 'localhost:1', '[::FFFF:a00:5]:1' => '10.0.0.5:1',
        '[2001:DB8:0:0:1:0:0:1]:1' => '[2001:db8::1:0:0:1]:1', '[1:0:0:2:0:0:0:3]:1' => '[1:0:0:2::3]:1', '[::1]:65535' => '[::1]:65535',
        '[1::]:5' => '[1::]:5', '[1:2:3:4:5:6:7:8]:5' => '[1:2:3:4:5:6:7:8]:5', '[1:0:3:4:5:6:7:8]:5' => '[1:0:3:4:5:6:7:8]:5',
        '[1::3:4:5:6:7:8]:6' => '[1:0:3:4:5:6:7:8]:6', '[64:ff9b::10.0.0.1]:7' => '[64:ff9b::a00:1]:7', '[0:0:1::]:8' => '[0:0:1::]:8',
        '[::a00:1]:9' => '[::a00:1]:9', '[1:0:0:2:3:0:0:4]:9' => '[1::2:3:0:0:4]:9',
    );
    done(list('# a comment', '', "  \t ", map({ "\t$_  weight=0  # $_\r" } sort keys %form), '10.0.0.9:9 max_conns=0 disabled weight=65535'));
    is(there(), join(' ', sort '10.0.0.9:9', values %form), 'every form of an address, into the one that nodes accept');
    my $meta = $redis->registry->{'10.0.0.9:9'}{meta};
    is("$meta->{max_conns} $meta->{weight}", '0 65535', 'options in any order');
    $redis->cli('FLUSHALL');
    done('--force', list($many));
    is($redis->cli(HLEN => 'upstream:servers:meta'), 3000, 'many servers');
    my $ran = run('--force', '-', { REDIS_URL => undef });
    like("$ran->{exit} $ran->{err}", qr/^2 .*stdin has no servers/, '- is stdin');
};

subtest 'files: what is refused' => sub {
    for my $case (
        [ '10.0.0.1', qr/a server is HOST:PORT, not 10\.0\.0\.1$/m ], [ '::1:80', qr/IPv6 goes in brackets, \[ADDRESS\]:PORT, not ::1:80/ ],
        [ 'shop..example:80', qr/the host must be an IP address or a name, not shop\.\.example/ ], [ '-a.example:80', qr/or a name/ ], [ 'a.1:80', qr/or a name/ ], [ ('a' x 64) . '.example:80', qr/or a name/ ], [ '[a.example]:80', qr/or a name/ ], [ '[10.0.0.1]:80', qr/must be an IP address/ ],
        map({ [ $_, qr/the host must be an IP address/ ] } '10.0.0.256:80', '10.0.0:80', '[1::2::3]:80', '[:::]:80', '[1:2:3:4:5:6:7]:80',
            '[1:2:3:4:5:6:7:8:9]:80', '[::1:2:3:4:5:6:7:8]:80', '[:1]:80', '[1:]:80', '[12345::]:80', '[fe80::1%eth0]:80', '[]:80', '[::1.2.3]:80'),
        map({ [ $_, qr/must not be the unspecified address/ ] } '0.0.0.0:80', '[::]:80', '[::ffff:0.0.0.0]:80'),
        map({ [ "10.0.0.1:$_", qr/the port must be 1 to 65535, not $_/ ] } 0, 65536, '123456789012345678901'),
        [ '10.0.0.1:http', qr/a server is HOST:PORT/ ], [ '10.0.0.1:80 weight=65536', qr/weight must be a whole number from 0 to 65535, not 65536/ ],
        [ '10.0.0.1:80 weight=-1', qr/weight must be/ ], [ '10.0.0.1:80 weight=', qr/weight must be/ ], [ '10.0.0.1:80 max_conns=2147483648', qr/max_conns must be a whole number from 0 to 2147483647/ ],
        [ '10.0.0.1:80 wieght=3', qr/there may be weight=N, max_conns=N and disabled, not wieght=3/ ], [ '10.0.0.1:80 10.0.0.2:80', qr/there may be weight=N/ ],
        [ '010.0.0.3:80', qr/10\.0\.0\.3:80 stands in line 2 already/ ], [ '10.0.0.1:80 weight=1$(touch x)', qr/weight must be/ ],
    ) {
        my ($line, $message) = @$case;
        refused(2, qr/servers line 4: .*$message/, $line, '--force', list('# first', '10.0.0.3:80', '', $line, '10.0.0.5:80'));
    }
    my $ran = refused(2, qr/line 1: .*\n.*line 3: .*\n.*has lines that are wrong; nothing was written/, 'all of them are named', '--force', list('a', '10.0.0.1:1', 'b'));
    refused(2, qr/has no servers/, 'no servers', '--force', list('# none'));
    refused(2, qr/can't read/, 'no file', '--force', temp_dir() . '/none');
    refused(2, qr/can't read/, 'a directory', '--force', temp_dir());
};

subtest 'a command line that is wrong' => sub {
    my $list = list('10.0.0.1:80');
    for my $case (
        [ qr/which file of servers/ ], [ qr/unknown argument: --bogus/, '--bogus', $list ], [ qr/one file of servers, not two/, $list, $list ],
        [ qr/--show takes no file/, '--show', $list ], [ qr/--force and --keep do not go together/, '--force', '--keep', $list ],
        [ qr/--redis needs a value/, '--redis' ], [ qr/--namespace must be/, '--namespace', 'a b', $list ], [ qr/--prefix must be/, '--prefix', '{x}', $list ],
        [ qr/--cacert: can't read/, '--cacert', '/none', $list ], [ qr/--cacert goes with rediss/, '--cacert', $list, $list ],
        [ qr/TIMEOUT must be seconds/, $list, { TIMEOUT => 'soon' } ],
    ) {
        my ($message, @arguments) = @$case;
        refused(2, $message, join(' ', grep { !ref } @arguments) || 'nothing', @arguments);
    }
    like(run('--help')->{out}, qr/^Usage: .*--redis.*--prefix.*--namespace.*--cluster.*--keep.*--force.*--show.*REDIS_URL/s, '--help');
    my $url = qr/the URL of Redis: /;
    for my $case (
        [ '127.0.0.1:6379', qr/it begins with redis:/ ], [ 'http://pa55@x/', qr/it begins with redis:/ ], [ 'redis:pa55@x', qr/is followed by \/\// ],
        [ 'redis://:pa55@', qr/a host is/ ], [ 'redis://:pa55@h:p', qr/a host is/ ], [ 'redis://:pa55@h/x', qr/database is a number/ ],
        [ 'redis://:pa55%@h', qr/two hexadecimal digits/ ], [ 'redis://:pa55 @h', qr/are written %20/ ], [ 'redis://:pa55@a,b', qr/several hosts go with/ ],
        [ 'redis://:pa55@h?db=1', qr/after "\?" there may be/ ], [ 'redis+sentinel://:pa55@h', qr/followed by \/SERVICE/ ],
        [ 'redis://:pa55/x@h', qr/are written %2F/ ], [ 'redis://:pa55?x@h', qr/are written %2F/ ], [ 'redis://:pa@55@h', qr/are written %2F/ ],
        [ 'redis://pa55@h', qr/needs a password/ ], [ 'redis://:pa55@h:0', qr/a port is/ ], [ 'redis://:pa55@h,', qr/several|a host is/ ],
        [ 'redis://:pa55%0A@h', qr/control characters/ ], [ 'redis://:pa55%00@h', qr/control characters/ ], [ 'unix:x?pass=pa55', qr/is absolute/ ],
        [ 'redis+cluster://:pa55@h/1', qr/no database but 0/ ], [ 'unix:/x?pass=pa55&dbs=1', qr/after "\?" there may be/ ],
    ) {
        my $ran = refused(2, qr/$url.*$case->[1]/, $case->[0], $list, { REDIS_URL => $case->[0] });
        unlike($ran->{err} . $ran->{out}, qr/pa55/, 'without the password');
    }
};

subtest 'ways to Redis' => sub {
    my $list = list('10.4.0.1:80');
    my $port = $redis->port;
    my $ca = RegistryTest::Redis::certificates();
    my $sees = sub {
        my ($what, $as, @arguments) = @_;
        $redis->cli('FLUSHALL');
        my $ran = done(@arguments, $list);
        like($ran->{out}, qr/^Wrote 1 server into "default" of the registry "upstream" in Redis at \Q$as\E:$/m, "$what: $as");
    };
    $sees->('a URL on the command line', "redis://127.0.0.1:$port/3", '--redis', "redis://127.0.0.1:$port/3");
    is($redis->cli(EXISTS => 'upstream:heartbeat'), 0, 'another database');
    $sees->('valkey', "valkey://localhost:$port/0", "--redis=valkey://localhost:$port");
    $sees->('a unix socket', 'unix:' . $redis->socket, '--redis', 'unix:' . $redis->socket);
    $sees->('with slashes', 'unix:' . $redis->socket, '--redis', 'redis+unix://' . $redis->socket . '?db=0');
    $sees->('TLS', 'rediss://localhost:' . $redis->tls_port . '/0', '--redis', 'rediss://localhost:' . $redis->tls_port . '/0', '--cacert', "$ca/ca.pem");
    refused(1, qr/^init_redis\.sh: error: Redis at rediss\S+: can't connect: .*certificate/m, 'a CA that did not sign', '--force', $list,
        '--redis', 'rediss://localhost:' . $redis->tls_port, '--cacert', "$ca/other.pem");

    my @cluster = RegistryTest->cluster;
    my $seeds = join ',', map { $_->address } @cluster;
    for my $first (@cluster) {
        done('--redis', 'redis://' . $first->address, '--cluster', '--keep', $list);
    }
    my ($owner) = RegistryTest::Redis->owner('{upstream}:heartbeat', @cluster);
    is(join(' ', sort @{ $owner->cli(KEYS => '*') }), '{upstream}:heartbeat {upstream}:servers:meta {upstream}:servers:zset {upstream}:sync:spaces',
        'a cluster: the keys have braces and are together, whoever is asked');
    $owner->cli(SET => '{upstream}:sync:epoch', '00000000000000aa');
    $owner->cli(SET => '{upstream}:sync:counts:x', '1');
    done('--redis', "redis+cluster://127.0.0.1:1,$seeds", '--force', '--namespace', 'shop', $list);
    is(scalar(@{ $owner->cli(KEYS => '{upstream}:shop:*') }) . ' ' . $owner->cli(EXISTS => '{upstream}:sync:counts:x'), '3 0', 'a wipe, by several seeds');
    my $ran = run('--redis', 'redis://' . $cluster[0]->address, $list);
    like("$ran->{exit} $ran->{err}", qr/^1 .*it is a cluster: give --cluster/, 'without --cluster');

    my $replica = RegistryTest->redis(replicaof => $redis);
    my $sentinel = RegistryTest->sentinel(master => $redis, replicas => [$replica], password => 'of-sentinels');
    my $where = '127.0.0.1:' . $sentinel->{ports}[0];
    $sees->('Sentinel', "redis+sentinel://127.0.0.1:1,$where/main/0", '--redis', "redis+sentinel://127.0.0.1:1,$where/main/0?sentinel_password=of%2Dsentinels");
    is(there(), '10.4.0.1:80', 'whose master has it');
    $ran = run('--redis', "redis+sentinel://$where/other?sentinel_password=of%2Dsentinels", $list);
    like("$ran->{exit} $ran->{err}", qr/^1 .*knows no master "other"/, 'a service that it does not know');
    ok($replica->in_step, 'the replica has it all');
    $ran = run('--redis', $replica->url, '--force', $list);
    like("$ran->{exit} $ran->{err}", qr/^1 .*it is a read-only replica: give the URL of its master/, 'a replica is read');
    is(run('--redis', $replica->url, '--show')->{exit}, 0, 'and can be shown');
};

subtest 'what Redis refuses is one line, without the password' => sub {
    my $list = list('10.5.0.1:80');
    my $safe = RegistryTest->redis(user => [ 'shop', 'pa55word', '~upstream:*', '+@all', '-zadd' ]);
    $safe->cli(CONFIG => SET => requirepass => 'a"b\'c pa55%');
    my $at = '127.0.0.1:' . $safe->port;
    my $good = 'redis://:a"b\'c%20pa55%25@' . $at;
    my $see = meddler(':');
    my $ran = run($list, { REDIS_URL => $good, PATH => "$see:$ENV{PATH}" });
    is("$ran->{exit} $ran->{err}", '0 ', 'a password with odd signs is sent');
    unlike(slurp("$see/arguments"), qr/pa55/, 'by no argument of redis-cli');
    is(run('--show', { REDIS_URL => "redis://$at", REDISCLI_AUTH => 'a"b\'c pa55%' })->{exit}, 0, 'or taken from REDISCLI_AUTH');
    my $slow = RegistryTest->redis;
    $slow->pause;
    for my $case (
        [ "redis://:pa55-wrong\@$at", qr/the user or the password is wrong/ ], [ "redis://nobody:pa55word\@$at", qr/the user or the password is wrong/ ],
        [ "redis://$at", qr/it wants a password: give the URL with one, in REDIS_URL/ ], [ "redis://shop:pa55word\@$at", qr/.*NOPERM: ZADD.*README\.md lists what must be allowed/, '--namespace=shop' ],
        [ "$good/77", qr/SELECT 77 failed: ERR DB index is out of range/ ], [ 'redis://:pa55@127.0.0.1:1', qr/can't connect: Connection refused/ ],
        [ 'redis://:pa55@nowhere.invalid', qr/can't connect: / ], [ 'unix:/nowhere/redis.sock', qr/can't connect: No such file/ ],
        [ $slow->url, qr/no answer within 0\.3 s/ ], [ 'redis+cluster://127.0.0.1:1,127.0.0.1:2', qr/can't connect: Connection refused/ ],
    ) {
        my ($url, $message, @more) = @$case;
        $ran = run('--keep', @more, $list, { REDIS_URL => $url, TIMEOUT => $url eq $slow->url ? 0.3 : 5 });
        is($ran->{exit}, 1, "exit code 1: $url");
        like($ran->{err}, qr/^init_redis\.sh: error: Redis at \S+: $message.*$/, 'the reason') or diag($ran->{err});
        is(scalar(my @lines = split /\n/, $ran->{err}) . ("$ran->{err}$ran->{out}" =~ /pa55/ ? ' pa55' : ''), 1, 'in one line, without the password');
    }
    is(join(' ', @{ $safe->cli(SMEMBERS => 'upstream:sync:spaces') }), 'default', 'nothing is written by one who may not write all of it');
    $slow->resume;
    $ran = run('--keep', $list, { REDIS_URL => 'redis://reader:secret-of-reader@127.0.0.1:' . $redis->port });
    like("$ran->{exit} $ran->{err}", qr/^1 .*NOPERM/, 'a user who may only read');
    is(run('--show', { REDIS_URL => 'redis://reader:secret-of-reader@127.0.0.1:' . $redis->port })->{exit}, 0, 'can look');
    $safe->cli(CONFIG => SET => maxmemory => 1);
    $ran = run('--keep', $list, { REDIS_URL => $good });
    like("$ran->{exit} $ran->{err}", qr/^1 .*OOM/, 'out of memory');
};

done_testing;
