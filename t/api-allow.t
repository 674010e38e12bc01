# allow_servers: what may be registered.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

# A registry with these lines; the client's address is what X-Real-IP says.
sub registry {
    my (@lines) = @_;
    return "registry main 128k {\n" . CORE::join('', map { "    $_;\n" } @lines) . "}\nupstream backend { registry main; }\n"
        . "set_real_ip_from 127.0.0.1;\n";
}
add_block_preprocessor(sub {
    my ($block) = @_;
    $block->set_value(conf => registry(split /\n/, $block->lines)) if defined $block->lines;
});

sub added { return CORE::join '', map { "> POST /upstream/add host=$_&port=80\n< 200 {...}\n" } @_ }

# host => as it is printed
sub refused {
    my @talk;
    while (my ($host, $printed) = splice @_, 0, 2) {
        push @talk, "> POST /upstream/add host=$host&port=80\n"
            . "< 403 Host $printed may not be registered: it is not in allow_servers\n";
    }
    return CORE::join '', @talk;
}

plan tests => 284;

run_tests();

__DATA__

=== TEST 1: a network of IPv4
--- lines
allow_servers 10.0.0.0/8
--- talk eval
main::added('10.0.0.1', '10.255.255.255', '010.1.2.3')
. main::refused('9.255.255.255' => '9.255.255.255', '11.0.0.0' => '11.0.0.0', '127.0.0.1' => '127.0.0.1',
    '2001:db8::1' => '2001:db8::1', '::a00:1' => '::a00:1')
. "> GET /upstream/health\n< 200 {\"code\":200,...\"total_servers\":3,...}\n"



=== TEST 2: IPv4 mapped in IPv6 is IPv4, before it is looked at
--- lines
allow_servers 10.0.0.0/8
--- talk eval
main::added('::ffff:10.0.0.1', '[::ffff:10.1.2.3]', '::FFFF:0a00:0002')
. main::refused('::ffff:11.0.0.1' => '11.0.0.1', '[::ffff:127.0.0.1]' => '127.0.0.1')



=== TEST 3: also as it is written in the configuration
--- lines
allow_servers ::ffff:10.0.0.0/104
allow_servers ::ffff:192.0.2.1
--- talk eval
main::added('::ffff:10.0.0.1', '10.1.2.3', '192.0.2.1')
. main::refused('11.0.0.1' => '11.0.0.1', '192.0.2.2' => '192.0.2.2', '::1' => '::1')



=== TEST 4: a network of IPv6
--- lines
allow_servers 2001:db8::/33
--- talk eval
main::added('2001:db8::1', '[2001:DB8:7fff:ffff:ffff:ffff:ffff:ffff]')
. main::refused('2001:db8:8000::' => '2001:db8:8000::', '[2001:db9::1]' => '2001:db9::1', '10.0.0.1' => '10.0.0.1')



=== TEST 5: single addresses
--- lines
allow_servers 192.0.2.7 2001:db8::7
--- talk eval
main::added('192.0.2.7', '2001:db8::7', '2001:DB8:0:0:0:0:0:7')
. main::refused('192.0.2.6' => '192.0.2.6', '192.0.2.8' => '192.0.2.8', '2001:db8::8' => '2001:db8::8')



=== TEST 6: everything of one family, and nothing of the other
--- lines
allow_servers 0.0.0.0/0
--- talk eval
main::added('203.0.113.7', '::ffff:203.0.113.8') . main::refused('2001:db8::1' => '2001:db8::1')



=== TEST 7: the same for IPv6
--- lines
allow_servers ::/0
--- talk eval
main::added('2001:db8::1') . main::refused('203.0.113.7' => '203.0.113.7', '::ffff:203.0.113.7' => '203.0.113.7')



=== TEST 8: the shortest and the longest prefixes
--- lines
allow_servers 128.0.0.0/1 10.0.0.2/31 10.0.1.1/32
allow_servers 2001:db8::2/127 2001:db8::9/128
--- talk eval
main::added('128.0.0.0', '255.255.255.254', '10.0.0.2', '10.0.0.3', '10.0.1.1', '2001:db8::2', '2001:db8::3', '2001:db8::9')
. main::refused('127.255.255.255' => '127.255.255.255', '10.0.0.1' => '10.0.0.1', '10.0.0.4' => '10.0.0.4',
    '10.0.1.2' => '10.0.1.2', '2001:db8::1' => '2001:db8::1', '2001:db8::4' => '2001:db8::4', '2001:db8::8' => '2001:db8::8')



=== TEST 9: several in a line, and several lines, add up
--- lines
allow_servers 10.0.0.0/8 192.168.0.0/16 fd00::/8
allow_servers 172.16.0.0/12
--- talk eval
main::added('10.1.1.1', '192.168.1.1', 'fd12::1', '172.31.255.255')
. main::refused('172.32.0.0' => '172.32.0.0', '192.169.0.0' => '192.169.0.0', 'fe80::1' => 'fe80::1')



=== TEST 10: the client's own address, when host is left out or empty
--- lines
allow_servers 10.0.0.0/8
--- talk
> POST /upstream/add port=80
+ X-Real-IP: 10.1.2.3
< 200 {"addr":"10.1.2.3:80",...}
> POST /upstream/add host=&port=80
+ X-Real-IP: 10.1.2.4
< 200 {"addr":"10.1.2.4:80",...}
> POST /upstream/add port=80
+ X-Real-IP: 11.1.2.3
< 403 Host 11.1.2.3 may not be registered: it is not in allow_servers
> POST /upstream/add host=&port=80
+ X-Real-IP: 2001:db8::1
< 403 Host 2001:db8::1 may not be registered: it is not in allow_servers
> POST /upstream/add port=80
< 403 Host 127.0.0.1 may not be registered: it is not in allow_servers



=== TEST 11: in the query string and in JSON as well
--- lines
allow_servers 10.0.0.0/8
--- config
location /upstream/ { registry_api main allow_get; }
--- talk
> GET /upstream/add?host=11.0.0.1&port=80
< 403 Host 11.0.0.1 may not be registered: it is not in allow_servers
> POST /upstream/add?host=11.0.0.1&port=80
< 403 Host 11.0.0.1 may not be registered: it is not in allow_servers
> POST /upstream/add {"host":"11.0.0.1","port":80}
< 403 Host 11.0.0.1 may not be registered: it is not in allow_servers
> GET /upstream/add?host=10.0.0.1&port=80
< 200 {...}



=== TEST 12: what is wrong with the request is said first, and nothing is done
--- lines
allow_servers 10.0.0.0/8
--- talk
> POST /upstream/add host=11.0.0.1&port=0
< 400 Parameter "port" must be an integer from 1 to 65535
> POST /upstream/add host=11.0.0.1&port=80&weight=x
< 400 Parameter "weight" must be an integer from 0 to 65535
> POST /upstream/add host=0.0.0.0&port=80
< 400 Parameter "host" must not be the unspecified address
> POST /upstream/add host=11.0.0.1&port=80&ns=other
< 403 Host 11.0.0.1 may not be registered: it is not in allow_servers
> GET /upstream/status?ns=other
< 404 Namespace not found: other



=== TEST 13: names need a resolver, whatever is allowed
--- lines
allow_servers 127.0.0.0/8
--- talk
> POST /upstream/add host=localhost&port=80
< 400 Parameter "host" is a name, ...
> POST /upstream/add host=127.0.0.1.example.com&port=80
< 400 Parameter "host" is a name, ...



=== TEST 14: server lines are the operator's own; the API may not add them again
--- conf
registry main 128k { allow_servers 10.0.0.0/8; }
upstream backend { registry main; server 192.0.2.1:80; server 10.0.0.1:80; server unix:/tmp/nobody; }
--- talk
> POST /upstream/toggle host=192.0.2.1&port=80&action=disable
< 200 {"addr":"192.0.2.1:80","enabled":false}
> POST /upstream/weight host=192.0.2.1&port=80&weight=3
< 200 {"addr":"192.0.2.1:80","weight":3}
> POST /upstream/refresh host=192.0.2.1&port=80
< 200 {...}
> POST /upstream/drain host=192.0.2.1&port=80
< 200 {...}
> POST /upstream/add host=192.0.2.1&port=80
< 403 Host 192.0.2.1 may not be registered: it is not in allow_servers
> POST /upstream/add host=10.0.0.1&port=80
< 200 {...}
> GET /upstream/health
< 200 {"code":200,..."total_servers":3,...}



=== TEST 15: for a server that is not there the other endpoints say so
--- lines
allow_servers 10.0.0.0/8
--- talk
> POST /upstream/refresh host=11.0.0.1&port=80
< 404 Server not found: 11.0.0.1:80
> POST /upstream/remove host=11.0.0.1&port=80
< 404 Server not found: 11.0.0.1:80



=== TEST 16: each registry has its own
--- conf
registry main 128k { allow_servers 10.0.0.0/8; }
registry other 128k { }
upstream a { registry main; }
upstream b { registry other; }
--- config
location /upstream/ { registry_api main; }
location /other/ { registry_api other; }
--- talk
> POST /upstream/add host=11.0.0.1&port=80
< 403 Host 11.0.0.1 may not be registered: it is not in allow_servers
> POST /other/add host=11.0.0.1&port=80
< 200 {...}



=== TEST 17: bits behind the prefix mean nothing; nginx says so, in the words of allow and deny
--- lines
allow_servers 10.0.0.1/8
--- warned: low address bits of 10.0.0.1/8 are meaningless: it is 10.0.0.0/8 in FILE:2
--- talk eval
main::added('10.9.9.9')



=== TEST 18: of IPv6 too
--- lines
allow_servers 2001:db8::1/32
--- warned: low address bits of 2001:db8::1/32 are meaningless: it is 2001:db8::/32 in FILE:2
--- talk eval
main::added('2001:db8:9::9')



=== TEST 19: not a network
--- lines
allow_servers 10.0.0.0/33
--- refused: invalid network "10.0.0.0/33" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 20: the wrong one of several is named, with its line
--- lines
allow_servers 10.0.0.0/8
allow_servers 192.168.0.0/16 ten.0.0.0/8 ::/0
--- refused: invalid network "ten.0.0.0/8" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:3



=== TEST 21: nothing
--- lines
allow_servers
--- refused: invalid number of arguments in "allow_servers" directive: it takes one or more in FILE:2



=== TEST 22: an empty word
--- lines
allow_servers ""
--- refused: invalid network "" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 23: a name
--- lines
allow_servers localhost
--- refused: invalid network "localhost" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 24: a prefix longer than IPv6 is
--- lines
allow_servers ::/129
--- refused: invalid network "::/129" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 25: a netmask, a port, an address cut short
--- lines
allow_servers 10.0.0.0/255.0.0.0
--- refused: invalid network "10.0.0.0/255.0.0.0" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 26: a port
--- lines
allow_servers 10.0.0.1:80
--- refused: invalid network "10.0.0.1:80" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2



=== TEST 27: an address cut short
--- lines
allow_servers 10/8
--- refused: invalid network "10/8" in "allow_servers": write it as 10.0.0.0/8, 2001:db8::/32 or a single address in FILE:2
