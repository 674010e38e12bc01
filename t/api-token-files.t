# api_token file:PATH: what may be in the file, when it is read, and that no token is ever shown.

use lib 't/lib';
use RegistryTest;
use POSIX ();

my $node = RegistryTest->nginx(start => 0, log_level => 'debug', workers => 2);
my $dir = $node->dir . '/conf';

sub conf {
    my (@lines) = @_;
    return http => "registry main 128k {\n@{[ join qq(\n), map qq(    $_;), @lines ]}\n}\nupstream backend { registry main; }",
        server => 'location /upstream/ { registry_api main; }';
}

# nginx -t with these lines in the block: exit code, and what it says without time and process.
sub tried {
    my (@lines) = @_;
    $node->set_conf(conf(@lines));
    my ($code, $said) = $node->test_conf;
    $said =~ s/\Q$dir\E/DIR/g;
    my ($emerg) = $said =~ /\[emerg\] (?:\d+#\d+: )?(.*?) in DIR\/nginx\.conf:\d+$/m;
    return ($code, defined $emerg ? $emerg : '', $said);
}

sub refused {
    my ($line, $message, $name) = @_;
    my ($code, $emerg) = tried($line);
    is($emerg, $message, "refused: $name");
    is($code, 1, 'with the exit code of a refusal');
    return;
}

# Each is 'token => status' for a status request.
sub answers {
    my ($name, %expected) = @_;
    my %got = map { $_ => $node->get('/upstream/status', headers => { 'X-API-Token' => $_ })->{status} } keys %expected;
    is_deeply(\%got, \%expected, $name);
    return;
}

# What may be in a file.
for my $case (
    [ "alone\n",                        'a line',                          'alone' ],
    [ 'alone',                          'without an end of line',          'alone' ],
    [ "alone\r\n",                      'with the end of line of Windows', 'alone' ],
    [ "  alone\t\n",                    'with space around it',            'alone' ],
    [ "\n\none\n\n\ntwo\n",             'several lines, some empty',       'one', 'two' ],
    [ 'x' x 512 . "\n",                 'as long as it may be',            'x' x 512 ],
    [ join('', map "t$_\n", 1 .. 9000), '9,000 lines',                     't1', 't9000' ],
) {
    my ($text, $name, @tokens) = @$case;
    spew("$dir/token", $text);
    $node->set_conf(conf('api_token file:token'));
    $node->start;
    answers($name, (map { $_ => 200 } @tokens), 'no-such' => 401, 'file:token' => 401);
    $node->quit;
}

# What may not.
my $syntax = 'a token must be 1 to 512 printable ASCII characters without spaces';
for my $case (
    [ '',                       'invalid "api_token": there is no token in "DIR/token": write one on each line', 'empty' ],
    [ " \n\r\n",                'invalid "api_token": there is no token in "DIR/token": write one on each line', 'empty lines' ],
    [ "good\nse cret\n",        qq(invalid "api_token": $syntax, in "DIR/token":2),                              'a space in it' ],
    [ "\0\1\2\xff" x 100,       qq(invalid "api_token": $syntax, in "DIR/token":1),                              'binary' ],
    [ "\xef\xbb\xbftoken\n",    qq(invalid "api_token": $syntax, in "DIR/token":1),                              'a byte order mark' ],
    [ "gr\xc3\xbc\xc3\x9fe\n",  qq(invalid "api_token": $syntax, in "DIR/token":1),                              'letters beyond ASCII' ],
    [ 'x' x 513,                qq(invalid "api_token": $syntax, in "DIR/token":1),                              'too long' ],
    [ "token\n" x 20_000,       'invalid "api_token": "DIR/token" is longer than 65536 bytes: write one token on each line', 'too big' ],
) {
    my ($text, $message, $name) = @$case;
    spew("$dir/token", $text);
    refused('api_token file:token', $message, $name);
}
unlink "$dir/token";
refused('api_token file:token', 'invalid "api_token": can\'t read "DIR/token": No such file or directory (os error 2)', 'no file');
refused('api_token file:', '"file:" needs a path in "api_token"', 'no path');
mkdir "$dir/token";
refused('api_token file:token', 'invalid "api_token": "DIR/token" is not a regular file', 'a directory');
rmdir "$dir/token";
refused('api_token file:/dev/zero', 'invalid "api_token": "/dev/zero" is not a regular file', 'a device');
symlink 'token', "$dir/token";
refused('api_token file:token', 'invalid "api_token": can\'t read "DIR/token": Too many levels of symbolic links (os error 40)', 'a link to itself');
unlink "$dir/token";

# A pipe that nobody writes into must not be waited for.
{
    POSIX::mkfifo("$dir/token", 0600) or die "mkfifo: $!\n";
    my $start = time;
    refused('api_token file:token', 'invalid "api_token": "DIR/token" is not a regular file', 'a pipe');
    cmp_ok(time - $start, '<', 5 * time_scale(), 'without waiting for a writer');
    unlink "$dir/token";
}

# Literal tokens.
for my $case (
    [ "api_token ''",           "invalid \"api_token\": $syntax", 'an empty one' ],
    [ "api_token 'two words'",  "invalid \"api_token\": $syntax", 'a space' ],
    [ 'api_token ' . 'x' x 513, "invalid \"api_token\": $syntax", 'too long' ],
    [ "api_token s\xc3\xa9same", "invalid \"api_token\": $syntax", 'beyond ASCII' ],
    [ 'api_token',              'invalid number of arguments in "api_token" directive: it takes one', 'none' ],
    [ 'api_token a-1 b-2',      'invalid number of arguments in "api_token" directive: it takes one', 'two in a line' ],
) {
    refused(@$case);
}

# No message shows a token, nor a part of one.
{
    spew("$dir/token", "Sesame1 Sesame2\n");
    for my $line ('api_token file:token', "api_token 'Sesame3 Sesame4'", 'api_token Sesame5 Sesame6', 'api_token Sesame7' . 'x' x 600) {
        my ($code, undef, $said) = tried($line);
        is($code, 1, 'refused');
        unlike($said, qr/Sesame/, 'and not shown');
    }
}

# A path that is absolute, and one of another directory; links are followed, as those of mounted secrets are.
{
    mkdir "$dir/secrets";
    spew("$dir/secrets/real", "of-the-file\n");
    symlink 'real', "$dir/secrets/token";
    chmod 0400, "$dir/secrets/real";
    for my $path ("$dir/secrets/token", 'secrets/token', './secrets/../secrets/token') {
        $node->set_conf(conf("api_token file:$path"));
        $node->start;
        answers($path =~ s/\Q$dir\E/DIR/r, 'of-the-file' => 200, 'else' => 401);
        $node->quit;
    }
}

# Rotation: both, then the new one. The file is read again at each reload, and only then.
{
    spew("$dir/token", "Old-Sesame\n");
    $node->set_conf(conf('api_token file:token', 'api_token Literal-Sesame', 'heartbeat_ttl 0'));
    $node->start;
    answers('before', 'Old-Sesame' => 200, 'New-Sesame' => 401, 'Literal-Sesame' => 200);
    is(api($node, 'add', { port => 80 }, headers => { 'X-API-Token' => 'Old-Sesame' })->{status}, 200, 'a server');

    spew("$dir/token", "New-Sesame\nOld-Sesame\n");
    answers('the file alone changes nothing', 'Old-Sesame' => 200, 'New-Sesame' => 401);
    ok($node->reload, 'a reload');
    answers('reads it', 'Old-Sesame' => 200, 'New-Sesame' => 200, 'Literal-Sesame' => 200);

    spew("$dir/token", "New-Sesame\n");
    ok($node->reload, 'a reload without the old token');
    answers('ends it', 'Old-Sesame' => 401, 'New-Sesame' => 200, 'Literal-Sesame' => 200);

    my @emergs;
    for my $bad ([ "\n", 'empty' ], [ undef, 'missing' ], [ "bad token\n", 'wrong' ]) {
        my ($text, $how) = @$bad;
        defined $text ? spew("$dir/token", $text) : unlink "$dir/token";
        my $from = $node->log_size;
        $node->signal('HUP');
        push @emergs, $node->wait_log(qr/\[emerg\].*api_token/, undef, $from);
        answers("a reload with the file $how keeps the tokens", 'Old-Sesame' => 401, 'New-Sesame' => 200, 'Literal-Sesame' => 200);
    }
    is(scalar(@emergs), 3, 'and says so each time');

    # One half of the configuration is bad: nothing of the other half is taken over.
    spew("$dir/token", "Third-Sesame\n");
    my $from = $node->log_size;
    $node->set_conf(conf('api_token file:token', 'nonsense on'));
    $node->signal('HUP');
    push @emergs, $node->wait_log(qr/\[emerg\].*nonsense/, undef, $from);
    answers('a token beside a wrong directive is not taken', 'Third-Sesame' => 401, 'New-Sesame' => 200);

    $node->set_conf(conf('heartbeat_ttl 0', 'api_token file:token'));
    ok($node->reload, 'a good one again');
    answers('it is', 'Third-Sesame' => 200, 'New-Sesame' => 401, 'Literal-Sesame' => 401);

    $node->set_conf(conf('heartbeat_ttl 0'));
    ok($node->reload, 'without the directive');
    answers('nobody is asked', '' => 200, 'anything' => 200);
    is(status($node)->{total}, 1, 'the servers are still there');

    $node->set_conf(conf('heartbeat_ttl 0', 'api_token Last-Sesame'));
    ok($node->reload, 'with it again');
    answers('everybody is', 'Last-Sesame' => 200, 'Third-Sesame' => 401, '' => 401);
    is(scalar(@emergs), 4, 'of four refused reloads');
}

# A connection that was there before the reload does not keep the old token.
{
    my $client = $node->client;
    is($client->get('/upstream/status', headers => { 'X-API-Token' => 'Last-Sesame' })->{status}, 200, 'a connection with a token');
    $node->set_conf(conf('api_token Other-Sesame'));
    ok($node->reload, 'the token is replaced');
    my $again = $client->get('/upstream/status', headers => { 'X-API-Token' => 'Last-Sesame' });
    is($again->{status} || 401, 401, 'the connection ends, or is asked for the new one');
}

# Nowhere in logs, replies and titles. nginx itself, when built for debugging, writes each header of a request.
{
    my @replies = map {
        my $headers = $_;
        map { $node->get("/upstream/$_", headers => $headers) } qw(status health nothing add)
    } { 'X-API-Token' => 'Other-Sesame' }, { Authorization => 'Bearer Other-Sesame' }, { 'X-API-Token' => 'Other-Sesame1' };
    is(scalar(grep { "$_->{raw_head}$_->{body}" =~ /Sesame/ } @replies), 0, 'in no reply');
    my @shown = grep { !/\[debug\] .* http header: "(?:X-API-Token|Authorization): / }
        $node->grep_log(qr/Sesame/);
    is("@shown", '', 'in no line of the error log, at level debug');
    unlike($node->access_log, qr/Sesame/, 'in no line of the access log');
    my @seen = grep { (slurp("/proc/$_/cmdline") . slurp("/proc/$_/environ")) =~ /Sesame/ } $node->pid, $node->workers;
    is("@seen", '', 'in no process title');
}

$node->log_is_clean(allow => [ [ qr/\[emerg\].*(?:api_token|nonsense)/, 4 ] ]);
done_testing;
